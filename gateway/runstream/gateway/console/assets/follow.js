// Follows one run as any page can: a browser's own EventSource, which comes back by itself with `Last-Event-ID`; where it
// was refused for what will pass, the page does. It notes every id that it was given, so that the page can prove of itself
// that nothing was missing and nothing came twice.

import { ask, paths, willPass } from "./api.js";

// What readers get, beside what runstream notes in a log for itself.
export const SHOWN_KINDS = new Set(["data", "plain", "error", "end"]);
const FINAL = new Set([400, 403, 404, 410, 422]);
const REFUSALS = 3; // So many in a row may pass, where nothing is wrong that could be found.
const PAUSE = 1500; // Half more or less: not all pages are to come back at once.

const parsed = (text) => {
  try {
    return JSON.parse(text);
  } catch {
    return null; // `[DONE]`, or what is no JSON.
  }
};

export class Following {
  constructor(runId, { onchunks, onstate }) {
    Object.assign(this, { runId, onchunks, onstate });
    this.seen = new Map(); // id → how often it came
    this.last = 0;
    this.count = 0;
    this.state = "away";
    this.connections = [];
    this.refusals = 0; // In a row.
    this.fresh = [];
    this.outline = { seq_ids: [], kinds: [], bytes: [], stored_at_ms: [] };
  }

  // Connect, after the last id that was seen. A new EventSource can send no header: it names the id in its query.
  open(how = "resumed by you, starting_after") {
    if (this.isLeft) return;
    this.close();
    // One that came to nothing is not noted again.
    if (this.connections.at(-1)?.isOpen !== false) this.note(this.last ? how : "begun", this.last);
    this.source = new EventSource(paths.stream(this.runId, this.last));
    this.turn("connecting");
    this.source.addEventListener("open", () => {
      this.connections.at(-1).isOpen = true;
      this.refusals = 0;
      this.turn("live");
    });
    this.source.addEventListener("message", (event) => this.take(event));
    this.source.addEventListener("run_error", (event) => this.take(event));
    this.source.addEventListener("error", () => this.lost());
  }

  // Take the connection away, as a tunnel would. The run does not notice.
  cut() {
    this.close();
    this.turn("cut");
  }

  // A page that is left may be kept by its browser for whoever comes back to it: it must not follow meanwhile.
  rest() {
    this.isResting = this.state === "live" || this.state === "connecting";
    if (this.isResting) this.cut();
  }

  wake() {
    if (this.isResting) this.open("back at this page, starting_after");
    this.isResting = false;
  }

  close() {
    this.source?.close();
    this.source = undefined;
    clearTimeout(this.returning);
    clearTimeout(this.flushing);
    this.flushing = undefined;
    this.flush();
  }

  // For good: what is still being asked for must not begin anything any more.
  leave() {
    this.isLeft = true;
    this.close();
  }

  turn(state, reason) {
    this.state = state;
    this.onstate(reason);
  }

  note(how, after) {
    this.connections.push({ at: Date.now(), how, after, count: 0, isOpen: false });
  }

  lost() {
    if (this.source?.readyState === EventSource.CONNECTING) {
      // The browser comes back by itself, after the time that the gateway has told it.
      if (this.connections.at(-1).isOpen) this.note("came back by itself, Last-Event-ID", this.last);
      this.turn("connecting");
    } else {
      this.refused();
    }
  }

  // A refusal stops an EventSource for good, and does not say why; and whatever stands before a gateway refuses, too, while
  // that is away. So the run and its log are asked for: what is wrong with them is why, and what will pass is waited for.
  async refused() {
    this.close();
    this.turn("connecting");
    this.refusals += 1;
    let status;
    let reason = "The gateway refuses to stream this run.";
    try {
      await ask(paths.run(this.runId));
      await this.readOutline();
    } catch (error) {
      ({ status, message: reason } = error);
    }
    if (this.isLeft || this.source || this.state !== "connecting") return; // Left, taken up again, or cut, meanwhile.
    if (FINAL.has(status) || (this.refusals > REFUSALS && !willPass(status))) this.turn("refused", reason);
    else this.returning = setTimeout(() => this.open("taken up again by this page, starting_after"), PAUSE * (0.5 + Math.random()));
  }

  take(event) {
    const isOver = event.data === "[DONE]";
    const message = parsed(event.data);
    const told = Number(event.lastEventId);
    // A ping has no id of its own: with it the browser says that of the event before once more.
    const id = message?.message_type === "ping" && told <= this.last ? 0 : told;
    if (id) {
      this.seen.set(id, (this.seen.get(id) ?? 0) + 1);
      this.last = Math.max(this.last, id);
    }
    if (id) this.connections.at(-1).count += 1;
    this.count += 1;
    this.fresh.push({ index: this.count, id, data: event.data, message });
    this.flushing ??= setTimeout(() => {
      this.flushing = undefined;
      this.flush();
    }, 40);
    if (isOver) {
      this.close();
      this.turn("over");
    }
  }

  flush() {
    if (!this.fresh.length) return;
    const fresh = this.fresh;
    this.fresh = [];
    this.onchunks(fresh);
  }

  // Read on in the outline of the log: what NATS has stored, and when. Of a long one each part is told of.
  async readOutline(onpart) {
    for (;;) {
      const after = this.outline.seq_ids.at(-1) ?? 0;
      const part = await ask(paths.outline(this.runId, after));
      if ((this.outline.seq_ids.at(-1) ?? 0) !== after) continue; // Somebody else has read on meanwhile.
      for (const name of Object.keys(this.outline)) this.outline[name].push(...part[name]);
      onpart?.();
      // Of large messages a part has fewer than might be: all is read where none is left.
      if (!part.seq_ids.length || part.kinds.at(-1) === "end") return this.outline;
    }
  }

  // Compare what this page was given with what the log holds, up to the last id that it was given.
  async check() {
    const upTo = this.last;
    const seen = new Map(this.seen);
    const { seq_ids: ids, kinds } = await this.readOutline();
    let stored = 0;
    let missing = 0;
    ids.forEach((id, index) => {
      if (id > upTo || !SHOWN_KINDS.has(kinds[index])) return;
      stored += 1;
      if (!seen.has(id)) missing += 1;
    });
    let twice = 0;
    for (const times of seen.values()) twice += times - 1;
    return { stored, missing, twice, upTo, at: Date.now() };
  }
}
