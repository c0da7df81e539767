// One run: what it says, chunk by chunk and as a whole, when it said it, who follows it, and this page's own connection,
// which can be cut and taken up again to see that nothing is lost.

import { ask, every, isLive, paths, willPass } from "./api.js";
import { Chunks } from "./chunks.js";
import { announce, h, mark, say } from "./dom.js";
import { Following } from "./follow.js";
import { age, bytes, clock, count, moment, short, span, when } from "./format.js";
import { runsAddress } from "./router.js";
import { Reading } from "./reading.js";
import { Timeline } from "./timeline.js";

const STATES = {
  away: ["warn", "Not connected"], connecting: ["warn", "Connecting"], live: ["live", "Connected"],
  cut: ["warn", "Cut by you"], over: ["good", "Has the whole run"], refused: ["bad", "Refused"],
};
const FRAMINGS = { event_source: "EventSource", letta: "Letta, in the background", letta_foreground: "Letta, in the foreground" };

const table = (caption, heads) => {
  const body = h("tbody");
  const row = h("tr", {}, ...heads.map(([text, isNumber]) => h("th", { scope: "col", class: isNumber ? "num" : null, text })));
  const element = h("div", { class: "table-wrap", tabindex: "0", role: "region", "aria-label": caption }, h("table", {}, h("caption", { class: "hidden", text: caption }), h("thead", {}, row), body));
  const show = (rows, nothing) => body.replaceChildren(...(rows.length
    ? rows.map((cells) => h("tr", {}, ...cells.map((text, index) => h("td", { class: heads[index][1] ? "num" : null, text }))))
    : [h("tr", {}, h("td", { class: "quiet", colspan: heads.length, text: nothing }))]));
  return { element, show };
};

// Asks before it ends what cannot be begun again.
const confirmation = (text, verb) => new Promise((settle) => {
  const keep = h("button", { type: "button", text: "Let it go on", onclick: () => dialog.close() });
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
    this.facts = Object.fromEntries(["Agent", "Conversation", "Made", "Age", "Stop reason", "Lease"].map((name) => [name, h("dd")]));
    this.element = h("div", { class: "run-head" }, h("h1", { text: id }), this.state, h("div", { class: "row" }, this.toggle, this.check, this.cancel));
    this.list = h("dl", { class: "panel facts" }, ...Object.entries(this.facts).map(([name, dd]) => h("div", { title: name === "Lease" ? "How long ago its writer gave the last sign of life, and how long one counts" : null }, h("dt", { text: name }), dd)));
    for (const [name, query] of [["Agent", "agent_id"], ["Conversation", "conversation_id"]]) this.facts[name].append(h("a", { class: "mono", "data-of": query }));
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
    }
    const made = moment(run.created_at);
    say(this.facts.Made, when(made));
    const end = run.completed_at ? moment(run.completed_at) : Date.now();
    say(this.facts.Age, isLive(run) ? age(end - made) : `took ${span(end - made)}`);
    say(this.facts["Stop reason"], run.stop_reason ?? "–");
    const lease = figures?.lease;
    say(this.facts.Lease, lease ? `${span(Date.now() - moment(lease.renewed_at))} of ${span(lease.seconds * 1000)}` : "–");
  }
}

// What this page can say of its own connection.
class Proof {
  constructor() {
    this.state = h("b");
    this.figures = h("span");
    this.verdict = h("b", { "data-tone": "good" });
    this.reason = h("span", { class: "quiet" });
    this.element = h("div", { class: "panel proof", role: "group", "aria-label": "This page's connection" }, this.state, this.figures, this.verdict, this.reason);
    this.show = (following) => {
      const [tone, text] = STATES[following.state];
      mark(this.state, "data-tone", tone);
      say(this.state, text);
      const last = following.connections.at(-1);
      say(this.figures, `${count(following.seen.size)} chunks · last id ${following.last || "none"} · connection ${following.connections.length}${last?.after ? `, after ${last.after}` : ""}`);
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
    say(this.reason, `of ${count(stored)} in the log up to ${upTo}, ${clock(at)}`);
  }
}

const followersPanel = () => {
  const people = table("Followers at this gateway", [["Framing"], ["Since"], ["Began"], ["Cursor", true], ["Behind", true], ["In its socket", true]]);
  const own = table("This page's connections", [["At"], ["How"], ["After", true], ["Events", true]]);
  const here = h("span", { class: "quiet" });
  return {
    elements: [
      h("section", { class: "panel" }, h("div", { class: "panel-head" }, h("h2", { text: "Connections of this page" })), own.element),
      h("section", { class: "panel" }, h("div", { class: "panel-head" }, h("h2", { text: "Followers" }), here), people.element),
    ],
    showOwn: (connections) => own.show(connections.map((each) => [clock(each.at), each.how, each.after ? String(each.after) : "the beginning", count(each.count)]), "None yet."),
    show: (found) => {
      say(here, `at this gateway, ${found.here.gateway}; others may have further ones`);
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
  let isOld = false; // Whether it is complained that what is shown may be.
  const mayCancel = session.scopes.includes("runs:cancel") || session.scopes.includes("admin");
  const alert = h("p", { class: "alert", role: "alert", hidden: true });
  const complain = (text) => {
    say(alert, text);
    alert.hidden = !text;
  };
  const note = h("p", { class: "alert", "data-tone": "warn", role: "status", hidden: true });

  const reading = new Reading();
  const chunks = new Chunks();
  const timeline = new Timeline();
  const proof = new Proof();
  const panels = followersPanel();
  const following = new Following(id, {
    onchunks: (fresh) => {
      chunks.add(fresh);
      reading.add(fresh.map((chunk) => chunk.message).filter(Boolean));
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

  const look = async () => {
    run = await ask(paths.run(id));
    [figures] = await ask(paths.figures([id]));
    head.show(run, figures, mayCancel);
    return run;
  };
  // A foreground run has no ids, and so cannot be followed; what it has said can be read.
  const readWhole = async () => {
    say(note, "This run was made in the foreground: it has no ids, so it cannot be followed or resumed. This is what it has said so far.");
    note.hidden = false;
    const said = (await ask(paths.messages(id))).map((message, index) => ({ index: index + 1, id: 0, data: JSON.stringify(message), message }));
    chunks.add(said);
    reading.add(said.map((chunk) => chunk.message));
    head.toggle.hidden = head.check.hidden = proof.element.hidden = true;
  };

  const old = (text) => {
    isOld = true;
    complain(text);
  };

  const stops = [];
  let beginning;
  const begin = async () => {
    try {
      await look();
      complain("");
      if (run.background) following.open();
      else await readWhole();
      await following.readOutline().catch((error) => old(error.message));
      timeline.show(following.outline, isLive(run));
      if (!following.isLeft) stops.push(every(2000, watch));
    } catch (error) {
      if (error.status !== 401) complain(error.status === 404 ? "There is no such run, or it is no longer kept." : error.message);
      if (willPass(error.status) && !following.isLeft) beginning = setTimeout(begin, 2000);
    }
  };
  const watch = async () => {
    try {
      panels.showOwn(following.connections);
      panels.show(await ask(paths.followers(id)));
      if (isLive(run)) {
        await look();
        await following.readOutline();
        timeline.show(following.outline, isLive(run));
      }
      if (isOld) complain(refusal);
      isOld = false;
    } catch (error) {
      if (error.status !== 401) old(`${error.message} What is shown may be old.`);
    }
  };

  say(head.toggle, "Cut my connection");
  proof.show(following);
  panels.showOwn([]);
  begin();
  const conversation = h("section", { class: "panel", "aria-label": "What it says" },
    h("div", { class: "panel-head" }, h("h2", { text: "Conversation" }), h("span", { class: "quiet", text: "put together from the chunks" })), reading.element);
  return {
    title: `Run ${short(id)}`,
    element: h("div", { class: "run" }, head.element, note, alert, head.list, proof.element, timeline.element, h("div", { class: "sides" }, conversation, chunks.element), ...panels.elements),
    rest: () => following.rest(),
    wake: () => following.wake(),
    close: () => {
      for (const stop of stops) stop();
      clearTimeout(beginning);
      following.leave();
      document.querySelector("dialog")?.close(); // It asks about this run.
      timeline.close();
      chunks.close();
    },
  };
};
