// How the gateway that answers is, and what it needs: for operators, with the scope admin.

import { ask, every, paths } from "./api.js";
import { h, mark, mend, say } from "./dom.js";
import { bytes, clock, count, span } from "./format.js";
import { rowOf, tableOf } from "./table.js";

const facts = (pairs) => h("dl", { class: "panel facts" }, ...pairs.map(([name, value]) => h("div", {}, h("dt", { text: name }), h("dd", { text: value }))));

const section = (title, note, ...children) => h("section", { class: "panel", "aria-label": title },
  h("div", { class: "panel-head" }, h("h2", { text: title }), note ? h("span", { class: "quiet", text: note }) : null), ...children);

const table = (label, heads, rows) => tableOf(label, heads, h("tbody", { role: "rowgroup" }, ...rows.map(({ cells, ...given }) => rowOf(heads, cells, given))));

const streams = (found) => table("Streams", [["Stream"], ["Messages", true], ["Bytes", true], ["Limit", true], ["Sequences", true], ["Consumers", true], ["Copies", true], ["Leader"]],
  found.map((each) => ({ cells: each.problem
    ? [each.name, "–", "–", "–", "–", "–", "–", each.problem]
    : [each.name, count(each.messages), bytes(each.bytes), each.limit_bytes === null ? "the server's" : `${bytes(each.limit_bytes)} (${Math.round((100 * each.bytes) / each.limit_bytes)} %)`,
      `${each.first_seq}–${each.last_seq}`, count(each.consumers), count(each.replicas), each.leader ?? "one server"] })));

const settings = (found) => table("Settings", [["Setting"], ["Value"], [""]],
  found.map((each) => ({ "data-set": String(!each.is_default), cells: [each.name, each.value === null ? "unset" : Array.isArray(each.value) ? each.value.join(", ") : String(each.value), each.is_default ? "" : "set"] })));

const agentOf = (agent) => (agent === null ? "none answers" : agent.is_demo ? "demo" : agent.forwards_credentials ? "with credentials" : "there");

export const healthView = () => {
  const state = h("p", { class: "alert", "data-tone": "good", role: "status" });
  const body = h("div", { class: "sheet" });
  const at = h("span", { class: "quiet" });
  let drawn = "";
  let isRefused = false;

  const draw = (found) => {
    const { nats, gateway } = found;
    state.dataset.tone = found.unready ? "bad" : "good";
    say(state, found.unready ? `Not ready: ${found.unready}` : "Ready.");
    const waiting = found.streams.find((each) => each.name === "RUNSTREAM_WORK");
    mend(body, h("div", {},
      facts([
        ["Live runs", count((found.runs.created ?? 0) + (found.runs.running ?? 0))], ["Run requests in NATS", count(waiting?.messages)],
        ["Open streams", `${count(gateway.streams)} of ${count(gateway.streams_limit)}`], ["Streams behind", count(gateway.streams_behind)],
        ["Agent", agentOf(found.agent)], ["Lease", span(found.lease_seconds * 1000)],
      ]),
      section("NATS", nats.url, facts([
        ["Connection", nats.is_connected ? "up" : "down"], ["Server", nats.server_version ?? "–"], ["Round trip", nats.round_trip_ms === null ? "–" : `${nats.round_trip_ms.toFixed(1)} ms`],
        ["Reconnects", count(nats.reconnects)], ["Largest message", bytes(nats.max_payload_bytes)],
      ])),
      section("Streams and storage", null, streams(found.streams)),
      section("This gateway", `${gateway.name}; others have figures of their own`, facts([
        ["Up for", span(gateway.uptime_seconds * 1000)], ["Runs followed", count(gateway.runs_followed)], ["Runs in memory", count(gateway.runs_in_memory)],
        ["Conversations", count(gateway.conversations_in_memory)], ["Index heard", `${span(gateway.list_silent_seconds * 1000)} ago`], ["Holes repaired", count(gateway.holes_repaired)],
      ])),
      section("Versions", null, facts(Object.entries(found.versions))),
    ));
  };
  const configuration = h("details", { class: "panel" }, h("summary", { class: "panel-head", text: "Configuration, without secrets" }));
  const configure = (found) => {
    const text = JSON.stringify(found.settings);
    if (text === drawn) return;
    drawn = text;
    const shown = settings(found.settings);
    shown.classList.add("settings");
    configuration.replaceChildren(configuration.firstChild, shown);
  };

  const look = async () => {
    if (isRefused) return;
    try {
      const found = await ask(paths.health);
      draw(found);
      mark(body, "data-stale", null);
      configure(found);
      configuration.hidden = false;
      say(at, `as of ${clock(Date.now())}`);
    } catch (error) {
      if (error.status === 401) return;
      isRefused = error.status === 403;
      state.dataset.tone = isRefused ? "warn" : "bad";
      mark(body, "data-stale", body.firstChild ? "" : null);
      say(state, isRefused ? "Health is for operators: it needs a credential with the scope admin." : error.message);
    }
  };
  configuration.hidden = true;
  const stop = every(3000, look);
  const element = h("div", { class: "sheet" }, h("div", { class: "row" }, h("h1", { text: "Health" }), at), state, body, configuration);
  return { title: "Health", element, close: stop };
};
