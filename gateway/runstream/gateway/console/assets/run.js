// One run: what it says, chunk by chunk and as a whole, when it said it, who follows it, and this page's own connection,
// which can be cut and taken up again to see that nothing is lost.

import { ask, every, isLive, paths, willPass } from "./api.js";
import { Approval, asksForApproval } from "./approval.js";
import { Chunks } from "./chunks.js";
import { copyButton, mendCopy } from "./copy.js";
import { announce, h, mark, say } from "./dom.js";
import { Following } from "./follow.js";
import { age, bytes, clock, count, moment, plural, short, span, unturned, when } from "./format.js";
import { noRun } from "./missing.js";
import { runsAddress } from "./router.js";
import { Reading } from "./reading.js";
import { rowOf, tableOf } from "./table.js";
import { Timeline } from "./timeline.js";

const STATES = {
  away: ["warn", "Not connected"], connecting: ["warn", "Connecting"], live: ["live", "Connected"],
  cut: ["warn", "Cut by you"], over: ["good", "Has the whole run"], refused: ["bad", "Refused"],
};
const FRAMINGS = { event_source: "EventSource", letta: "Letta, in the background", letta_foreground: "Letta, in the foreground" };

const NOT_ONE = new Set([400, 404, 422]); // No run's id, or the id of none that there is.

const table = (label, heads) => {
  const body = h("tbody", { role: "rowgroup" });
  const show = (rows, nothing) => body.replaceChildren(...(rows.length
    ? rows.map((cells) => rowOf(heads, cells))
    : [h("tr", { role: "row" }, h("td", { role: "cell", class: "quiet", colspan: heads.length, text: nothing }))]));
  return { element: tableOf(label, heads, body), show };
};

// Asks before it ends what cannot be begun again.
const confirmation = (text, verb) => new Promise((settle) => {
  const keep = h("button", { type: "button", text: "Keep it running", onclick: () => dialog.close() });
  const yes = h("button", { type: "button", class: "danger", text: verb, onclick: () => dialog.close("yes") });
  const dialog = h("dialog", { "aria-labelledby": "question" }, h("p", { id: "question", text }), h("div", { class: "row" }, keep, yes));
  dialog.addEventListener("close", () => {
    dialog.remove();
    settle(dialog.returnValue === "yes");
  });
  document.body.append(dialog);
  dialog.showModal();
});

// What stands above: which run, how it is, and what can be done about it.
class Head {
  constructor(id, actions) {
    this.state = h("span", { class: "state" });
    this.toggle = h("button", { type: "button", onclick: actions.toggle });
    this.check = h("button", { type: "button", text: "Check against the log", onclick: actions.check });
    this.cancel = h("button", { type: "button", class: "danger", text: "Cancel run", hidden: true, onclick: actions.cancel });
    this.facts = Object.fromEntries(["Agent", "Conversation", "Created", "Age", "Stop reason", "Lease"].map((name) => [name, h("dd")]));
    const copy = copyButton();
    mendCopy(copy, id);
    this.element = h("div", { class: "run-head" }, h("div", { class: "run-title" }, h("h1", { text: unturned(id) }), copy), this.state, h("div", { class: "row" }, this.toggle, this.check, this.cancel));
    this.list = h("dl", { class: "panel facts" }, ...Object.entries(this.facts).map(([name, dd]) => h("div", { title: name === "Lease" ? "How long ago its writer gave the last sign of life, and how long one counts" : null }, h("dt", { text: name }), dd)));
    for (const [name, query] of [["Agent", "agent_id"], ["Conversation", "conversation_id"]]) this.facts[name].append(h("a", { class: "mono", "data-of": query }), copyButton());
  }

  // What is shown was so at that moment; undefined: it is so now.
  asOf(moment) {
    mark(this.list, "data-stale", moment === undefined ? null : "");
    mark(this.state, "data-stale", moment === undefined ? null : "");
    this.cancel.disabled = moment !== undefined;
    if (moment !== undefined) say(this.state, `${this.state.dataset.state}, as of ${clock(moment)}`);
  }

  show(run, figures, mayCancel) {
    mark(this.state, "data-state", run.status);
    say(this.state, run.status);
    this.cancel.hidden = !isLive(run) || !mayCancel;
    for (const name of ["Agent", "Conversation"]) {
      const link = this.facts[name].firstChild;
      const id = run[link.dataset.of];
      say(link, short(id));
      mark(link, "title", id);
      mark(link, "href", id ? runsAddress({ q: id, status: "all" }) : null);
      mendCopy(link.nextSibling, id);
    }
    const created = moment(run.created_at);
    say(this.facts.Created, when(created));
    const end = run.completed_at ? moment(run.completed_at) : Date.now();
    say(this.facts.Age.previousSibling, isLive(run) ? "Age" : "Took");
    say(this.facts.Age, isLive(run) ? age(end - created) : span(end - created));
    say(this.facts["Stop reason"], run.stop_reason ?? "–");
    const lease = figures?.lease;
    say(this.facts.Lease, lease ? `${span(Date.now() - moment(lease.renewed_at))} of ${span(lease.seconds * 1000)}` : "–");
  }
}

// What this page can say of its own connection.
class Proof {
  constructor() {
    this.state = h("b");
    this.figures = h("span", { title: "Chunks are all that has an id: what the agent has said, the stop reason, the usage, an error, and the end" });
    this.verdict = h("b", { "data-tone": "good" });
    this.reason = h("span", { class: "quiet" });
    this.element = h("div", { class: "panel proof", role: "group", "aria-label": "This page's connection" }, this.state, this.figures, this.verdict, this.reason);
    this.show = (following) => {
      const [tone, text] = STATES[following.state];
      mark(this.state, "data-tone", tone);
      say(this.state, text);
      const last = following.connections.at(-1);
      say(this.figures, `${plural(following.seen.size, "chunk")} · last id ${following.last || "none"} · connection ${following.connections.length}${last?.after ? `, after ${last.after}` : ""}`);
    };
  }

  // What was checked before says nothing of what has come since.
  wait() {
    say(this.verdict, "");
    say(this.reason, "checking against the log");
  }

  judge({ stored, missing, twice, upTo, at }) {
    mark(this.verdict, "data-tone", missing || twice ? "bad" : "good");
    say(this.verdict, `${count(missing)} missing, ${count(twice)} twice`);
    say(this.reason, `of the ${count(stored)} in the log up to ${upTo}, checked ${clock(at)}`);
  }
}

const followersPanel = () => {
  const people = table("Followers at this gateway", [["Client"], ["Since"], ["Began"], ["Cursor", true], ["Behind", true], ["In its socket", true]]);
  const own = table("This page's connections", [["At"], ["How"], ["After", true], ["Chunks", true]]);
  const here = h("span", { class: "quiet" });
  return {
    elements: [
      h("section", { class: "panel" }, h("div", { class: "panel-head" }, h("h2", { text: "Connections of this page" })), own.element),
      h("section", { class: "panel" }, h("div", { class: "panel-head" }, h("h2", { text: "Followers" }), here), people.element),
    ],
    showOwn: (connections) => own.show(connections.map((each) => [clock(each.at), each.how, each.after ? String(each.after) : "the beginning", count(each.count)]), "None yet."),
    show: (found) => {
      say(here, `at this gateway, ${found.here.gateway}; others may have more`);
      people.show(found.followers.map((each) => [
        FRAMINGS[each.framing], clock(moment(each.since)), each.began_after ? `resumed after ${each.began_after}` : "at the beginning",
        String(each.cursor), count(each.behind_messages), bytes(each.waiting_bytes),
      ]), "Nobody follows it here.");
    },
  };
};

export const runView = ({ id, session }) => {
  let run = null;
  let figures = null;
  let refusal = "";
  let seenAt = Date.now();
  let isOld = false; // Whether it is complained that what is shown may be.
  let isOutlined = false; // Whether all of the log's outline was read, of a run that has ended.
  const may = (scope) => session.scopes.includes(scope) || session.scopes.includes("admin");
  const mayCancel = may("runs:cancel");
  const alert = h("p", { class: "alert", role: "alert", hidden: true });
  const complain = (text) => {
    say(alert, text);
    alert.hidden = !text;
  };
  const note = h("p", { class: "alert", "data-tone": "warn", role: "status", hidden: true });

  const reading = new Reading();
  const approval = new Approval({ mayAnswer: may("runs:write") });
  const chunks = new Chunks();
  const timeline = new Timeline();
  const proof = new Proof();
  const panels = followersPanel();
  const following = new Following(id, {
    onchunks: (fresh) => {
      chunks.add(fresh);
      reading.add(fresh);
      proof.show(following);
    },
    onstate: (reason) => {
      proof.show(following);
      panels.showOwn(following.connections);
      head.toggle.disabled = following.state === "over" || following.state === "refused";
      say(head.toggle, following.state === "cut" ? "Resume" : "Cut my connection");
      refusal = following.state === "refused" ? reason : "";
      if (refusal) complain(refusal);
      if (following.state === "over") over();
    },
  });

  const check = async () => {
    try {
      const found = await following.check();
      if (following.isLeft) return; // Another view is shown: nothing is said there of this one.
      proof.judge(found);
      announce(proof.verdict.textContent);
      timeline.show(following.outline, isLive(run));
    } catch (error) {
      if (error.status !== 401) say(proof.reason, `not checked: ${error.message}`);
    }
  };
  const over = async () => {
    announce("The run has ended.");
    proof.wait();
    await look().catch(() => {}); // The next look, or the check, says what is wrong.
    reading.end(`The run has ended: ${run?.status ?? "over"}.`);
    await offer().catch(() => {});
    await check();
  };
  const toggle = () => {
    if (following.state === "cut") {
      const after = following.last;
      following.open();
      announce(`Resumed after ${after}.`);
      setTimeout(check, 1000);
    } else {
      following.cut();
      announce("Cut. The run goes on.");
    }
  };
  const cancel = async () => {
    if (!(await confirmation("Cancel this run? It ends for everybody who follows it, and cannot be taken up again.", "Cancel run"))) return;
    complain("");
    isOld = false;
    try {
      const outcomes = await ask(paths.cancel(run.agent_id), { method: "POST", body: { run_ids: [id] } });
      if (outcomes[id] !== "cancelled") throw new Error("The gateway does not know it any more.");
      announce("The run is cancelled.");
      await look();
    } catch (error) {
      complain(`It is not cancelled. ${error.message}`);
    }
  };
  const head = new Head(id, { toggle, check, cancel });

  // The record is shown as soon as it is there: nothing else is waited for.
  const look = async () => {
    run = await ask(paths.run(id));
    if (!isLive(run)) figures = null;
    head.show(run, figures, mayCancel);
    if (!isLive(run)) return;
    [figures] = await ask(paths.figures([id]));
    head.show(run, figures, mayCancel);
  };
  const offer = async () => {
    if (!asksForApproval(run) || !reading.ended || following.isLeft) return;
    const wasOffered = approval.element.isConnected;
    await approval.look(run, reading.request());
    if (!wasOffered) reading.toEnd();
  };
  // A foreground run has no ids, and so cannot be followed; what it has said can be read: at once, and when it has ended.
  const readWhole = async () => {
    say(note, `This run was made in the foreground: it has no ids, so it cannot be followed or resumed. This is what it has said${isLive(run) ? " so far" : ""}.`);
    note.hidden = false;
    const said = (await ask(paths.messages(id))).map((message, index) => ({ index: index + 1, id: 0, data: JSON.stringify(message), message }));
    for (const shown of [chunks, reading]) {
      shown.clear();
      shown.add(said);
    }
    if (!isLive(run)) reading.end(`The run has ended: ${run.status}.`);
    head.toggle.hidden = head.check.hidden = proof.element.hidden = true;
  };

  const old = (error) => {
    if (error.status === 401) return;
    isOld = true;
    if (willPass(error.status)) head.asOf(seenAt);
    complain(willPass(error.status) ? `Not connected since ${clock(seenAt)}: what is shown may be old. ${error.message}` : error.message);
  };

  const stops = [];
  let beginning;
  const begin = async () => {
    try {
      run = await ask(paths.run(id));
      head.show(run, figures, mayCancel);
      complain("");
      if (following.isLeft) return;
      if (run.background) following.open();
      else await readWhole();
      if (!following.isLeft) stops.push(every(2000, watch), every(2000, outline));
    } catch (error) {
      if (NOT_ONE.has(error.status)) {
        element.replaceChildren(noRun(id));
        announce("There is no such run.");
      } else if (error.status !== 401) complain(error.message);
      if (willPass(error.status) && !following.isLeft) beginning = setTimeout(begin, 2000);
    }
  };
  // By itself: of a long run it takes longer than all the rest.
  const outline = async () => {
    if (isOutlined) return;
    const hasEnded = !isLive(run);
    try {
      await following.readOutline(() => timeline.show(following.outline, isLive(run)));
      isOutlined = hasEnded;
    } catch (error) {
      timeline.fail(error.message);
      isOutlined = hasEnded && !willPass(error.status);
    }
  };
  const watch = async () => {
    try {
      panels.showOwn(following.connections);
      if (isLive(run)) await look();
      if (!run.background && !isLive(run) && !reading.ended) {
        await readWhole();
        announce("The run has ended.");
      }
      panels.show(await ask(paths.followers(id)));
      await offer();
      seenAt = Date.now();
      if (!isOld) return;
      head.asOf(undefined);
      head.show(run, figures, mayCancel);
      complain(refusal);
      isOld = false;
    } catch (error) {
      old(error);
    }
  };

  say(head.toggle, "Cut my connection");
  proof.show(following);
  panels.showOwn([]);
  begin();
  const conversation = h("section", { class: "panel", "aria-label": "What it says" },
    h("div", { class: "panel-head" }, h("h2", { text: "Conversation" }), h("span", { class: "quiet", text: "put together from the chunks" })), reading.element);
  const element = h("div", { class: "run" }, head.element, note, alert, head.list, proof.element, timeline.element, h("div", { class: "sides" }, conversation, chunks.element), ...panels.elements);
  return {
    title: `Run ${unturned(short(id))}`,
    element,
    rest: () => following.rest(),
    wake: () => following.wake(),
    close: () => {
      for (const stop of stops) stop();
      clearTimeout(beginning);
      following.leave();
      approval.isLeft = true;
      document.querySelector("dialog")?.close(); // It asks about this run.
      timeline.close();
      chunks.close();
    },
  };
};
