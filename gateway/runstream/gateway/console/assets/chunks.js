// The chunks of a run as they came, one line each, with their ids; one that is pressed shows whole.

import { h, mark, say } from "./dom.js";
import { laidOut, plural, unturned } from "./format.js";
import { VirtualList } from "./virtual.js";

const HEIGHT = 24;
const LINE = 400;
const QUIET = new Set(["ping", "usage_statistics", "stop_reason", "end"]);

const labels = new Map(Object.entries({
  assistant_message: "assistant", reasoning_message: "reasoning", tool_call_message: "tool call", tool_return_message: "return",
  approval_request_message: "approval", usage_statistics: "usage", stop_reason: "stop", error_message: "error",
}));

const typeOf = (chunk) => {
  if (chunk.data === "[DONE]") return "end";
  return typeof chunk.message?.message_type === "string" ? chunk.message.message_type : "other";
};

const lineOf = (chunk) => {
  const { message } = chunk;
  const text = message?.content ?? message?.reasoning ?? message?.tool_call?.arguments ?? message?.tool_return ?? message?.stop_reason;
  return unturned((typeof text === "string" ? JSON.stringify(text) : chunk.data).slice(0, LINE));
};

export class Chunks {
  constructor() {
    this.clear();
    this.pressed = null;
    this.isFollowed = true;
    this.space = h("div", { class: "space" });
    this.scroller = h("div", {
      class: "scroller chunks", tabindex: "0", role: "region", "aria-label": "Chunks; up and down go from chunk to chunk",
    }, this.space);
    this.shown = h("pre");
    this.inspector = h("div", { class: "inspect", hidden: true, role: "region", "aria-label": "The chunk that is pressed", tabindex: "0" }, this.shown);
    this.total = h("span", { class: "quiet" });
    this.element = h("section", { class: "panel", "aria-label": "Chunks" },
      h("div", { class: "panel-head" }, h("h2", { text: "Chunks" }), h("span", { class: "quiet", text: "seq_id · type · as it came" }), this.total),
      this.scroller, this.inspector);
    this.list = new VirtualList({
      scroller: this.scroller, space: this.space, height: HEIGHT, key: (chunk) => chunk.index,
      make: () => this.make(), mend: (row, chunk, index) => this.mend(row, chunk, index),
    });
    this.scroller.addEventListener("scroll", () => { this.isFollowed = this.list.isAtEnd; }, { passive: true });
  }

  close() {
    this.list.close();
  }

  // What is added next is all that there is.
  clear() {
    this.items = [];
    this.counts = { chunk: 0, ping: 0, message: 0 };
  }

  add(chunks) {
    for (const chunk of chunks) {
      this.items.push(chunk);
      this.counts[chunk.id ? "chunk" : typeOf(chunk) === "ping" ? "ping" : "message"] += 1;
    }
    say(this.total, Object.entries(this.counts).filter(([, number]) => number).map(([one, number]) => plural(number, one)).join(", "));
    this.list.show(this.items);
    if (this.isFollowed) this.list.toEnd();
  }

  make() {
    const row = h("button", { type: "button", class: "chunk" }, h("span"), h("span"), h("span"));
    row.addEventListener("click", () => this.press(Number(row.dataset.index)));
    return row;
  }

  mend(row, chunk, index) {
    const type = typeOf(chunk);
    mark(row, "data-index", index);
    mark(row, "aria-pressed", String(this.pressed === index));
    mark(row, "data-tone", type === "error_message" ? "bad" : QUIET.has(type) ? "quiet" : null);
    say(row.children[0], chunk.id ? String(chunk.id) : "–");
    say(row.children[1], labels.get(type) ?? type.replace(/_message$/, ""));
    say(row.children[2], lineOf(chunk));
  }

  press(index) {
    this.pressed = this.pressed === index ? null : index;
    const chunk = this.items[this.pressed];
    this.inspector.hidden = chunk === undefined;
    if (chunk) say(this.shown, chunk.message ? unturned(laidOut(chunk.data)) : chunk.data);
    this.list.plan();
  }
}
