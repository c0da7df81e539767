// Starts a run of the demo agent, which does as it is told: see docs/demo-agent.md.

import { begin, paths } from "./api.js";
import { h, mark, say } from "./dom.js";
import { go, runAddress } from "./router.js";

const PRESETS = [
  ["A plain answer", { chunks: 40, interval_ms: 120 }],
  ["Thoughts and a tool", { chunks: 60, interval_ms: 80, reasoning: true, tool_call: true }],
  ["A long silence first", { chunks: 30, interval_ms: 150, silence_ms: 6000 }],
  ["10,000 chunks", { chunks: 10000, interval_ms: 2 }],
  ["It fails midway", { chunks: 40, interval_ms: 80, error_after: 20 }],
  ["It asks for approval", { chunks: 12, interval_ms: 120, approval: true }],
];
const NUMBERS = [["chunks", "Chunks", 40, 1000000], ["interval_ms", "Milliseconds between them", 120, 86400000], ["silence_ms", "Milliseconds of silence first", 0, 86400000], ["error_after", "Fail after so many chunks", "", 1000000]];
const FLAGS = [["reasoning", "Thoughts"], ["tool_call", "A tool call"], ["approval", "Ask for approval"]];

// A new one for each run: one that waits for approval answers nothing else. No randomUUID over plain http.
const newAgent = () => {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return `agent-${hex.replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-")}`;
};

export const tryView = ({ session }) => {
  const alert = h("p", { class: "alert", role: "alert", hidden: true });
  const numbers = Object.fromEntries(NUMBERS.map(([name, , value, most]) => [name, h("input", { id: name, type: "number", min: 0, max: most, value, inputmode: "numeric" })]));
  const flags = Object.fromEntries(FLAGS.map(([name]) => [name, h("input", { id: name, type: "checkbox" })]));
  const text = h("input", { id: "text", placeholder: "the agent's own sentence" });
  const press = h("button", { class: "main", type: "submit", text: "Start the run" });

  const fill = (knobs) => {
    for (const [name, , value] of NUMBERS) numbers[name].value = knobs[name] ?? (name === "silence_ms" ? 0 : name === "error_after" ? "" : value);
    for (const [name] of FLAGS) flags[name].checked = Boolean(knobs[name]);
    choose();
  };
  const chosen = () => {
    const knobs = {};
    for (const [name, input] of Object.entries(numbers)) if (input.value !== "") knobs[name] = Number(input.value);
    for (const [name, input] of Object.entries(flags)) if (input.checked) knobs[name] = true;
    return knobs;
  };
  // That example is pressed which the fields still say.
  const choose = () => {
    const now = chosen();
    PRESETS.forEach(([, knobs], index) => {
      const wanted = { silence_ms: 0, ...knobs };
      const isSame = Object.keys({ ...wanted, ...now }).every((name) => wanted[name] === now[name]);
      mark(presets[index], "aria-pressed", String(isSame));
    });
  };
  const submit = async (event) => {
    event.preventDefault();
    const knobs = chosen();
    if (text.value.trim()) knobs.text = text.value.trim();
    press.disabled = true;
    alert.hidden = true;
    try {
      go(runAddress(await begin(paths.say(newAgent()), { streaming: true, background: true, input: JSON.stringify(knobs) })));
    } catch (error) {
      say(alert, `No run was started. ${error.message}`);
      alert.hidden = false;
      press.disabled = false;
    }
  };

  const presets = PRESETS.map(([name, knobs]) => h("button", { type: "button", text: name, onclick: () => fill(knobs) }));
  const form = h("form", { class: "panel", onsubmit: submit, oninput: choose },
    h("div", { class: "row presets", role: "group", "aria-label": "Examples" }, ...presets),
    h("div", { class: "knobs" },
      ...NUMBERS.map(([name, label]) => h("label", { class: "field", for: name }, label, numbers[name])),
      h("label", { class: "field wide", for: "text" }, "Words", text)),
    h("div", { class: "row flags", role: "group", "aria-label": "What it does besides" }, ...FLAGS.map(([name, label]) => h("label", { class: "check", for: name }, flags[name], label))),
    h("div", { class: "row submit" }, press));
  choose();
  const element = h("div", { class: "sheet" }, h("h1", { text: "Try it" }),
    h("p", { class: "note", text: "Start a run of the demo agent in the background. Then cut the page's connection, reload, go offline, or restart the gateway: the run goes on, and nothing is lost." }),
    session.has_demo_agent ? null : h("p", { class: "alert", "data-tone": "warn", text: "Messages are not answered by the demo agent here, so there is nothing to try." }), alert, session.has_demo_agent ? form : null);
  return { title: "Try it", element };
};
