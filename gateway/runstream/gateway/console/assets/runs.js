// The list of runs: those that go on, or those that were. What is looked for stands in the address.

import { ask, every, isLive, paths, willPass } from "./api.js";
import { copyButton, mendCopy } from "./copy.js";
import { announce, h, mark, say } from "./dom.js";
import { age, clock, count, moment, short } from "./format.js";
import { go, runAddress, runsAddress } from "./router.js";
import { VirtualList } from "./virtual.js";

const CHOICES = [["", "Live"], ["all", "All"], ["completed", "Completed"], ["failed", "Failed"], ["cancelled", "Cancelled"]];
const PAGE = { live: 1000, other: 200 };
const HEIGHT = { wide: 34, narrow: 66 };
const MOST_FIGURES = 100;
const TYPING = 250;
const UUID = "[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}";
const IDS = { run: new RegExp(`^run-${UUID}$`), conversation: new RegExp(`^conv-${UUID}$`), agent: new RegExp(`^agent-${UUID}$`) };
const ONLY_HERE = "Known to this gateway only: other gateways may serve further followers of the same run.";

// What is asked of the API for what somebody has typed. Part of an id is looked for among what was loaded; `last` is where
// that ends, whether it was found there or not.
const load = async ({ q, status }, after) => {
  if (IDS.run.test(q)) {
    try {
      return { runs: [await ask(paths.run(q))], isWhole: true };
    } catch (error) {
      if (error.status === 404) return { runs: [], isWhole: true };
      throw error;
    }
  }
  const limit = status ? PAGE.other : PAGE.live;
  const query = { limit };
  if (!status) query.active = "true";
  else if (status !== "all") query.statuses = status;
  if (IDS.conversation.test(q)) query.conversation_id = q;
  if (IDS.agent.test(q)) query.agent_id = q;
  if (after) query.after = after;
  const runs = await ask(paths.runs(query));
  const page = { isWhole: runs.length < limit, last: runs.at(-1)?.id };
  if (!q || query.conversation_id || query.agent_id) return { runs, ...page };
  const found = runs.filter((run) => [run.id, run.agent_id, run.conversation_id].some((id) => id?.includes(q)));
  if (found.length || after) return { runs: found, ...page };
  try {
    return { runs: [await ask(paths.withOtid(q))], isWhole: true };
  } catch (error) {
    if (error.status === 404) return { runs: [], ...page };
    throw error;
  }
};

export const runsView = ({ query, session }) => {
  let wanted = { q: query.get("q") ?? "", status: query.get("status") ?? "" };
  let older = [];
  let newest = [];
  let isWhole = true;
  let isPaged = false;
  let last;
  let turn = 0;
  let visible = [];
  let typing;
  let seenAt = Date.now();
  const figures = new Map();
  const narrow = matchMedia("(max-width: 720px)");

  // -- what is looked for

  const box = h("input", {
    type: "search", name: "q", value: wanted.q, "aria-label": "Search by run, conversation, agent or otid",
    placeholder: "run, conversation, agent or otid", spellcheck: "false", autocomplete: "off",
  });
  box.addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => go(runsAddress({ ...wanted, q: box.value.trim() }), { replace: true }), TYPING);
  });
  const form = h("form", { onsubmit: (event) => {
    event.preventDefault();
    clearTimeout(typing);
    const q = box.value.trim();
    go(IDS.run.test(q) ? runAddress(q) : runsAddress({ ...wanted, q }));
  } }, box);
  const links = CHOICES.map(([, text]) => h("a", { text }));
  const choice = h("nav", { class: "choice", "aria-label": "Status" }, ...links);
  const choose = () => CHOICES.forEach(([value], index) => {
    mark(links[index], "href", runsAddress({ ...wanted, status: value }));
    mark(links[index], "aria-current", wanted.status === value ? "true" : null);
  });

  // -- rows

  const cell = (name, ...children) => h("span", { role: "cell", "data-cell": name }, ...children);
  const make = () => h("div", { class: "grid-row", role: "row" },
    cell("status", h("span", { class: "state" })), cell("run", h("a", { class: "id mono" }), copyButton()),
    cell("agent", h("a", { class: "mono" })), cell("conversation", h("a", { class: "mono" })),
    ...["age", "messages", "rate", "followers", "lag"].map((name) => h("span", { role: "cell", class: "num", "data-cell": name })));
  const mendLink = (element, id, address) => {
    say(element, short(id));
    mark(element, "title", id);
    mark(element, "href", id ? address : null);
  };
  const mend = (row, run, index) => {
    const [status, id, agent, conversation, since, messages, rate, followers, lag] = row.children;
    const found = figures.get(run.id);
    const goesOn = isLive(run);
    mark(row, "data-index", index);
    mark(row, "aria-rowindex", index + 2);
    mark(status.firstChild, "data-state", run.status);
    say(status.firstChild, run.status);
    mendLink(id.firstChild, run.id, runAddress(run.id));
    mendCopy(id.lastChild, run.id);
    mendLink(agent.firstChild, run.agent_id, runsAddress({ ...wanted, q: run.agent_id }));
    mendLink(conversation.firstChild, run.conversation_id, runsAddress({ ...wanted, q: run.conversation_id ?? "" }));
    say(since, age(Date.now() - moment(run.created_at)));
    mark(since, "title", `created ${run.created_at}`);
    say(messages, count(found?.messages));
    say(rate, goesOn && found?.rate !== undefined ? `${found.rate.toFixed(found.rate < 10 ? 1 : 0)}/s` : "–");
    say(followers, goesOn ? count(found?.here.followers) : "–");
    say(lag, goesOn && found ? count(found.here.lag_messages) : "–");
    mark(lag, "class", found?.here.lag_messages > 0 ? "num late" : "num");
  };

  const head = h("div", { class: "grid-row head", role: "row", "aria-rowindex": "1" },
    ...["Status", "Run", "Agent", "Conversation"].map((text) => h("span", { role: "columnheader", "data-cell": text.toLowerCase(), text })),
    ...[["age", "Age"], ["messages", "Messages", "All that its log has: its chunks, and a few messages of runstream's own"], ["rate", "Rate", "Messages a second, between two looks of this page"],
      ["followers", "Followers, here", ONLY_HERE], ["lag", "Lag, here", `Messages that the slowest follower lacks. ${ONLY_HERE}`]]
      .map(([name, text, title]) => h("span", { role: "columnheader", class: "num", "data-cell": name, text, title })));
  const space = h("div", { class: "space", role: "none" });
  const scroller = h("div", { class: "scroller", tabindex: "0", role: "rowgroup", "aria-label": "Runs; up and down go from run to run" }, space);
  const said = h("p");
  const seeAll = h("a", { href: runsAddress({ status: "all" }), text: "See all runs, ended ones too" });
  const tryIt = h("a", { href: "/console/try", text: "Try it: start a run of the demo agent" });
  const empty = h("div", { class: "empty", hidden: true }, said, h("p", { class: "row" }, tryIt, seeAll));
  const total = h("span");
  const more = h("button", { type: "button", text: "Load older", hidden: true, onclick: () => loadOlder() });
  const alert = h("p", { class: "alert", role: "alert", hidden: true });
  const grid = h("div", { class: "panel grid", role: "table", "aria-label": "Runs" },
    h("div", { class: "grid-head", role: "rowgroup" }, head), scroller);
  const list = new VirtualList({
    scroller, space, height: narrow.matches ? HEIGHT.narrow : HEIGHT.wide, key: (run) => run.id, make, mend,
    onwindow: (items) => { visible = items; },
  });
  const resize = () => {
    list.height = narrow.matches ? HEIGHT.narrow : HEIGHT.wide;
    list.plan();
  };
  narrow.addEventListener("change", resize);

  // -- looking

  const draw = () => {
    const ids = new Set();
    const runs = [...newest, ...older].filter(({ id }) => !ids.has(id) && ids.add(id));
    list.show(runs);
    for (const id of figures.keys()) if (!ids.has(id)) figures.delete(id);
    mark(grid, "aria-rowcount", runs.length + 1);
    const what = wanted.status ? (wanted.status === "all" ? "runs" : `${wanted.status} runs`) : "live runs";
    say(total, `${count(runs.length)}${isWhole ? "" : " newest"} ${runs.length === 1 ? what.replace(/s$/, "") : what}`);
    more.hidden = isWhole || !wanted.status;
    empty.hidden = runs.length > 0;
    seeAll.hidden = wanted.status === "all";
    tryIt.hidden = Boolean(wanted.q) || !session.has_demo_agent;
    say(said, wanted.q
      ? `No ${what} match “${wanted.q}”. A whole id is looked for everywhere; part of one among the newest; anything else as an otid.`
      : wanted.status ? `No ${what}.` : "Nothing runs at the moment. A run shows here as soon as it is started.");
  };

  // What newer ones have pushed off the first page, where there are further ones behind it.
  const pushedOut = (runs) => {
    if (!runs.length) return [];
    const ids = new Set(runs.map(({ id }) => id));
    const oldest = moment(runs.at(-1).created_at);
    return newest.filter((run) => !ids.has(run.id) && moment(run.created_at) <= oldest);
  };

  const look = async (mine = turn) => {
    try {
      const found = await load(wanted);
      if (mine !== turn) return;
      if (isPaged) older = [...pushedOut(found.runs), ...older];
      else ({ isWhole, last } = found);
      newest = found.runs;
      seenAt = Date.now();
      alert.hidden = true;
      mark(grid, "data-stale", null);
      draw();
    } catch (error) {
      if (mine !== turn || error.status === 401) return;
      say(alert, willPass(error.status) ? `Not connected since ${clock(seenAt)}: what is shown may be old. ${error.message}` : error.message);
      alert.hidden = false;
      mark(grid, "data-stale", "");
    }
  };

  const loadOlder = async () => {
    const mine = turn;
    more.disabled = true;
    try {
      const found = await load(wanted, last);
      if (mine !== turn) return;
      older = [...older, ...found.runs];
      isPaged = true;
      ({ isWhole, last } = found);
      draw();
      announce(`${count(found.runs.length)} older ${found.runs.length === 1 ? "run" : "runs"}`);
    } catch (error) {
      if (mine !== turn) return;
      say(alert, error.message);
      alert.hidden = false;
    } finally {
      more.disabled = false;
    }
  };

  const measure = async () => {
    // Each costs NATS three reads: one that has ended is looked at once more, and then left alone.
    const open = visible.filter((run) => !figures.get(run.id)?.isLast).slice(0, MOST_FIGURES);
    if (!open.length) return;
    const ids = open.map((run) => run.id);
    const ended = new Set(open.filter((run) => !isLive(run)).map((run) => run.id));
    try {
      const now = performance.now();
      for (const found of await ask(paths.figures(ids))) {
        const before = figures.get(found.run_id);
        const seconds = before ? (now - before.at) / 1000 : 0;
        const rate = before ? (found.messages - before.messages) / seconds : undefined;
        figures.set(found.run_id, { ...found, rate, at: now, isLast: ended.has(found.run_id) });
      }
      list.plan();
    } catch {
      // The list itself says what is wrong.
    }
  };

  const stops = [
    every(() => (newest.length > 200 ? 5000 : 2000), () => look()),
    every(2000, measure),
    every(1000, () => list.plan()),
  ];
  choose();

  const element = h("section", { class: "runs" },
    h("h1", { class: "hidden", text: "Runs" }),
    h("div", { class: "runs-head" }, choice, h("search", {}, form)),
    alert, grid, empty, h("div", { class: "grid-foot" }, total, more, h("span", { class: "quiet here", text: "Followers and lag are those of this gateway." })));
  return {
    title: "Runs",
    element,
    turn: (query) => {
      wanted = { q: query.get("q") ?? "", status: query.get("status") ?? "" };
      turn += 1;
      older = [];
      newest = [];
      isPaged = false;
      more.hidden = true; // Where it would go on is known of what was looked for before.
      if (box.value.trim() !== wanted.q) box.value = wanted.q;
      choose();
      scroller.scrollTop = 0;
      look();
    },
    close: () => {
      for (const stop of stops) stop();
      clearTimeout(typing);
      list.close();
      narrow.removeEventListener("change", resize);
    },
  };
};
