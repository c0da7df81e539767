// A run as a person reads it: the events of one message put together, thoughts folded, calls and returns as cards.

import { h, mark, say } from "./dom.js";
import { count, laidOut, plural, unturned } from "./format.js";

const MOST_ITEMS = 400;

const textOf = (content) => {
  if (typeof content === "string") return content;
  if (!Array.isArray(content)) return content === null || content === undefined ? "" : JSON.stringify(content);
  return content.map((part) => (typeof part?.text === "string" ? part.text : JSON.stringify(part))).join("");
};

const pretty = (text) => {
  try {
    JSON.parse(text);
  } catch {
    return text;
  }
  return laidOut(String(text));
};

// What is written to a message waits until all that came together is there, and is then added to the one text it has:
// a node for each chunk would be ten thousand of them.
const write = (item, text) => {
  item.fresh = (item.fresh ?? "") + text;
};

const settle = (item) => {
  if (!item.fresh) return;
  if (item.text === undefined) {
    item.text = document.createTextNode("");
    item.body.append(item.text);
  }
  item.text.appendData(item.fresh);
  item.fresh = "";
};

const head = (...parts) => h("p", { class: "said-by" }, ...parts);

// Each kind of message: how it begins, how a further event of it goes on, and how what waits is shown, if not as text.
const prose = (who, field) => ({
  make: () => {
    const body = h("p", { class: "prose", dir: "auto" });
    return { element: h("article", {}, head(who), body), body };
  },
  add: (item, message) => write(item, textOf(message[field])),
});

const call = (what, tone) => ({
  make: () => {
    const name = h("strong", { class: "mono" });
    const body = h("pre", { tabindex: "0", "aria-label": "Arguments" });
    return { element: h("article", { class: "card", "data-tone": tone }, head(what, " ", name), body), body, name, calls: new Map() };
  },
  add: (item, message) => {
    const calls = [message.tool_calls ?? message.tool_call].flat().filter(Boolean);
    for (const each of calls) {
      const id = each.tool_call_id ?? [...item.calls.keys()].at(-1) ?? "";
      const before = item.calls.get(id) ?? { name: "", text: "" };
      item.calls.set(id, { name: before.name || String(each.name ?? ""), text: before.text + String(each.arguments ?? "") });
    }
  },
  // Once for all that came together: of arguments that come in ten thousand parts all would be read as often.
  settle: (item) => {
    const all = [...item.calls.values()];
    say(item.name, unturned(all.map((each) => each.name).join(", ")));
    say(item.body, unturned(all.map((each) => pretty(each.text)).join("\n")));
  },
});

const KINDS = {
  assistant_message: prose("Assistant", "content"),
  user_message: prose("User", "content"),
  system_message: prose("System", "content"),
  summary_message: prose("Summary of what was before", "summary"),
  reasoning_message: {
    make: () => {
      const body = h("p", { class: "prose", dir: "auto" });
      const size = h("span");
      return { element: h("details", {}, h("summary", {}, "Thought ", size), body), body, size };
    },
    add: (item, message) => {
      write(item, message.reasoning ?? "");
      item.characters = (item.characters ?? 0) + (message.reasoning ?? "").length;
      say(item.size, `· ${plural(item.characters, "character")}`);
    },
  },
  hidden_reasoning_message: {
    make: () => ({ element: h("p", { class: "quiet", text: "Thought, and what was thought is withheld." }) }),
    add: () => {},
  },
  tool_call_message: call("Calls", null),
  approval_request_message: call("Asks for approval to call", "warn"),
  tool_return_message: {
    make: () => {
      const status = h("span");
      const body = h("pre", { tabindex: "0", dir: "auto", "aria-label": "What it returned" });
      const element = h("article", { class: "card" }, head("Returned ", status), body);
      return { element, body, status };
    },
    add: (item, message) => {
      const returns = message.tool_returns ?? [message];
      const isBad = returns.some((each) => each.status === "error");
      say(item.status, isBad ? "an error" : "");
      mark(item.element, "data-tone", isBad ? "bad" : null);
      const outputs = returns.flatMap((each) => [textOf(each.tool_return), each.stdout ?? [], each.stderr ?? []].flat());
      write(item, outputs.map(pretty).join("\n"));
    },
  },
  approval_response_message: {
    make: () => ({ element: h("article", { class: "card" }) }),
    add: (item, message) => {
      const answers = message.approvals ?? [message];
      item.element.append(...answers.map((each) => {
        const isGiven = each.approve === true || each.status === "success";
        return h("p", { dir: "auto", text: `${isGiven ? "Approved" : "Denied"}${each.reason ? `: ${each.reason}` : ""}` });
      }));
    },
  },
  stop_reason: {
    make: () => ({ element: h("p", { class: "ending" }) }),
    add: (item, message) => say(item.element, `Stopped: ${message.stop_reason}`),
  },
  usage_statistics: {
    make: () => ({ element: h("p", { class: "quiet" }) }),
    add: (item, message) =>
      say(item.element, `${plural(message.prompt_tokens, "token")} in · ${count(message.completion_tokens)} out · ${count(message.total_tokens)} in all`),
  },
  error_message: {
    make: () => ({ element: h("div", { class: "alert" }) }),
    add: (item, message) => {
      item.element.replaceChildren(
        h("p", { dir: "auto" }, h("strong", { text: message.error_type ?? "error" }), ` ${message.message ?? ""}`),
        message.detail ? h("p", { class: "quiet", dir: "auto", text: message.detail }) : "",
      );
    },
  },
};

const OTHER = {
  make: () => {
    const body = h("pre", { tabindex: "0", "aria-label": "As it came" });
    const name = h("span");
    return { element: h("article", { class: "card" }, head(name), body), body, name };
  },
  add: (item, message) => {
    say(item.name, message.message_type);
    write(item, `${JSON.stringify(message, null, 2)}\n`);
  },
};

const wordsOf = (chunk) => {
  const { data, message } = chunk;
  if (message === null && data !== "null") return data; // No JSON: a platform that sends plain text.
  if (typeof message === "string") return message;
  if (message === null || typeof message !== "object" || "message_type" in message) return undefined;
  return [message.text, message.content, message.delta].find((text) => typeof text === "string");
};

// What a platform that is no Letta writes: what reads as text is put together, all else is kept folded, a line each.
const OWN = {
  make: () => {
    const body = h("p", { class: "prose", dir: "auto" });
    const raw = h("pre", { tabindex: "0", "aria-label": "As they came" });
    const size = h("summary");
    const folded = h("details", { hidden: true }, size, raw);
    return { element: h("article", {}, head("The platform's own chunks"), body, folded), body, raw, size, folded, others: 0 };
  },
  add: (item, chunk) => {
    const text = wordsOf(chunk);
    if (text !== undefined) {
      write(item, text);
      return;
    }
    item.others += 1;
    item.lines = `${item.lines ?? ""}${unturned(chunk.data)}\n`;
  },
  settle: (item) => {
    settle(item);
    if (!item.lines) return;
    item.raw.append(item.lines);
    item.raw.normalize();
    item.lines = "";
    item.folded.hidden = false;
    say(item.size, `${plural(item.others, "chunk")} without text, as ${item.others === 1 ? "it" : "they"} came`);
  },
};

export class Reading {
  constructor() {
    this.left = h("p", { class: "quiet", hidden: true });
    this.element = h("div", { class: "reading", tabindex: "0", role: "region", "aria-label": "Conversation" });
    this.clear();
    this.isFollowed = true;
    this.element.addEventListener("scroll", () => {
      const { scrollTop, clientHeight, scrollHeight } = this.element;
      this.isFollowed = scrollHeight - scrollTop - clientHeight < 40;
    }, { passive: true });
  }

  // What is added next is all that there is.
  clear() {
    this.items = new Map();
    this.number = 0;
    this.dropped = 0;
    this.own = null;
    this.element.replaceChildren(this.left);
  }

  // Takes chunks as they came: `data` as text, `message` what it is as JSON.
  add(chunks) {
    const touched = new Set(chunks.map((chunk) => this.addOne(chunk)));
    for (const item of touched) item?.settle(item);
    while (this.items.size > MOST_ITEMS) {
      const [key, item] = this.items.entries().next().value;
      item.element.remove();
      this.items.delete(key);
      this.dropped += 1;
    }
    this.left.hidden = !this.dropped;
    say(this.left, `${count(this.dropped)} earlier messages are left out here; all of them are among the chunks.`);
    this.toEnd();
  }

  // Who has scrolled up reads there, and is left there.
  toEnd() {
    if (this.isFollowed) this.element.scrollTop = this.element.scrollHeight;
  }

  addOne(chunk) {
    const { data, message } = chunk;
    const type = message?.message_type;
    if (type === "ping" || data === "[DONE]") return null;
    if (typeof type !== "string") return this.addOwn(chunk);
    this.own = null;
    const kind = (Object.hasOwn(KINDS, type) && KINDS[type]) || OTHER;
    try {
      return this.addAs(kind, message);
    } catch {
      return this.addAs(OTHER, message); // Nobody sees to it that what an agent calls a message is one.
    }
  }

  addAs(kind, message) {
    const isJoined = typeof message?.id === "string" && kind !== OTHER;
    this.number += 1;
    const key = isJoined ? `${message.message_type} ${message.id} ${message.otid ?? ""}` : `alone ${this.number}`;
    const before = this.items.get(key);
    const item = before ?? { kind, settle: kind.settle ?? settle, ...kind.make() };
    kind.add(item, message);
    if (before === undefined) this.put(key, item);
    return item;
  }

  // Those that follow each other are one block.
  addOwn(chunk) {
    this.number += 1;
    if (!this.own) {
      this.own = { settle: OWN.settle, ...OWN.make() };
      this.put(`own ${this.number}`, this.own);
    }
    OWN.add(this.own, chunk);
    return this.own;
  }

  put(key, item) {
    this.items.set(key, item);
    this.element.append(item.element);
  }

  // The calls that approval was asked for, and the card of the last of them.
  request() {
    const asked = [...this.items.values()].filter((item) => item.kind === KINDS.approval_request_message);
    const calls = asked.flatMap((item) => [...item.calls.keys()]).filter(Boolean);
    return { element: asked.at(-1)?.element, calls: [...new Set(calls)] };
  }

  end(text) {
    if (this.ended) return;
    this.ended = true;
    this.element.append(h("p", { class: "ending", text }));
    this.toEnd();
  }
}
