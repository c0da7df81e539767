// Approve or deny the tool calls that a run has ended with: the answer is a message, which a run of its own goes on from.

import { ask, begin, paths } from "./api.js";
import { announce, h, say } from "./dom.js";
import { moment, short } from "./format.js";
import { go, runAddress } from "./router.js";

const REFUSED_FOR_WAITING = "CONFLICT: Cannot send a new message: The agent is waiting for approval";
const PAGE = 100;
const MOST_PAGES = 10; // Then it may be answered all the same: the gateway knows better whether it waits.
const NEXT = new Set(["created", "running", "completed"]);

const REASONS = {
  0: "The gateway cannot be reached. Try again when it is back.",
  401: "You are not signed in any more.",
  403: "Your key may not answer: it needs the scope runs:write.",
  404: "The conversation is not there any more.",
  409: "Another run goes on in this conversation. Try again when it has ended.",
  429: "Too many runs were started just now. Try again in a minute.",
};

const UNSEEN = new Set([403, 404]); // A key that is for less than what came after, or a run that is kept no longer.

export const asksForApproval = (run) => run?.status === "completed" && run.stop_reason === "requires_approval";

// What is of the same conversation, or of the agent's own runs.
const areaOf = (run) => (run.conversation_id ? { conversation_id: run.conversation_id } : { agent_id: run.agent_id });

// Runs of a conversation follow each other. An agent's own go on side by side: of one that was made before this one ended, by
// two processes' clocks, it is not known.
const follows = (run, each) => Boolean(run.conversation_id) || moment(each.created_at) >= moment(run.completed_at);

const wasRefused = (each) => each.metadata?.error?.message?.startsWith(REFUSED_FOR_WAITING);

// An agent's default conversation is answered as one, or it would not count as busy.
const placeOf = (run) => {
  if (run.conversation_id) return [paths.sayIn(run.conversation_id), {}];
  if (run.metadata?.run_type === "send_conversation_message") return [paths.sayIn("default"), { agent_id: run.agent_id }];
  return [paths.say(run.agent_id), {}];
};

const linkTo = (id) => h("a", { class: "mono", href: runAddress(id), title: id, text: short(id) });

// Of one otid for each decision on a run: whoever presses twice, or decides what somebody else has decided, starts no second
// run, and whoever decides otherwise is not led to the run of somebody else's decision.
const otidOf = (run, approve) => `console-answers-${run.id}-${approve ? "approve" : "deny"}`;

export class Approval {
  constructor({ mayAnswer }) {
    this.mayAnswer = mayAnswer;
    this.pages = 0;
    this.reason = h("input", { "aria-label": "Reason, which may be left out", placeholder: "reason, if you like", autocomplete: "off" });
    this.approve = h("button", { type: "button", class: "main", onclick: () => this.answer(true) });
    this.deny = h("button", { type: "button", class: "danger", onclick: () => this.answer(false) });
    this.buttons = h("div", { class: "row" }, this.approve, this.deny, this.reason);
    this.said = h("p");
    this.alert = h("p", { class: "alert", role: "alert", hidden: true });
    this.element = h("div", { class: "decision" }, this.said, mayAnswer ? this.buttons : null, this.alert);
  }

  // Whether the run waits is looked at again and again: somebody else may answer.
  async look(run, request) {
    if (this.isAnswered || this.isUnseen || this.isSending || !request?.calls.length) return;
    this.run = run;
    this.calls = request.calls;
    const all = this.calls.length > 1 ? ` all ${this.calls.length}` : "";
    say(this.approve, `Approve${all}`);
    say(this.deny, `Deny${all}`);
    try {
      const next = await this.readOn();
      if (this.isSending) return;
      this.show(next);
    } catch (error) {
      if (!UNSEEN.has(error.status)) throw error;
      this.unseen(error);
    }
    if (this.element.parentNode !== request.element) request.element.append(this.element);
  }

  // One page of what came after, from where the last look stopped; returns the run that goes on from the answer, or may. One
  // that failed or was cancelled may have been an answer, or not: it keeps nobody from giving one.
  async readOn() {
    const newer = (await ask(paths.runs({ ...areaOf(this.run), before: this.before ?? this.run.id, limit: PAGE }))).reverse();
    const here = newer.filter((each) => (each.conversation_id ?? null) === (this.run.conversation_id ?? null) && !wasRefused(each));
    const next = here.find((each) => NEXT.has(each.status) && follows(this.run, each));
    if (next) return next;
    this.doubted = here.at(-1)?.id ?? this.doubted;
    const isLast = newer.length < PAGE;
    if (!isLast) {
      this.before = newer.at(-1).id;
      this.pages += 1;
    }
    this.isRead ||= isLast || this.pages >= MOST_PAGES;
    return undefined;
  }

  show(next) {
    const hadFocus = this.buttons.contains(document.activeElement);
    this.isQueued = next?.status === "created";
    this.isAnswered = next?.status === "completed";
    if (next) this.tell(this.isQueued ? "It is being answered. What waits to go on: " : "It does not wait any more. What came next: ", next.id);
    else this.wait();
    if (next && !this.isQueued) this.buttons.remove();
    else if (this.mayAnswer && !this.buttons.parentNode) this.said.after(this.buttons);
    this.hold();
    if (hadFocus && !this.buttons.contains(document.activeElement)) this.said.querySelector("a")?.focus();
  }

  wait() {
    if (!this.isRead) {
      this.tell("Looking at what came after it.");
      return;
    }
    const waits = `The agent waits for an answer.${this.mayAnswer ? "" : " Yours needs the scope runs:write."}`;
    this.tell(this.doubted ? `${waits} A run since then may have been one: ` : waits, this.doubted);
  }

  // Written anew only when it is something else: a link keeps the focus it has.
  tell(words, id) {
    const told = words + (id ?? "");
    if (this.told === told) return;
    this.told = told;
    this.said.replaceChildren(words, ...(id ? [linkTo(id)] : []));
    announce(id ? words + short(id) : words);
    if (!this.isBeaten) this.alert.hidden = true;
  }

  unseen(error) {
    this.isUnseen = true;
    this.buttons.remove();
    this.tell(error.status === 403
      ? "It asked for approval. Your key may not see what came after it, and so not answer."
      : `It asked for approval. What came after it cannot be seen: ${error.message}`);
  }

  hold() {
    for (const button of [this.approve, this.deny]) button.disabled = Boolean(this.isSending || this.isQueued || !this.isRead);
  }

  complain(...words) {
    this.alert.replaceChildren(...words);
    this.alert.hidden = false;
  }

  // Somebody else was first. What they decided is known where they did it here.
  beaten(approve, id, otid) {
    this.isBeaten = true;
    const [tried, other] = approve ? ["approved", "denied"] : ["denied", "approved"];
    const first = otid?.startsWith(otidOf(this.run, !approve)) ? `somebody else has ${other} it` : "somebody else was first";
    this.complain(`Not ${tried}: ${first}. Their run: `, linkTo(id));
  }

  async answer(approve) {
    this.isSending = true;
    this.isBeaten = false;
    this.alert.hidden = true;
    this.hold();
    const reason = this.reason.value.trim();
    const approvals = this.calls.map((id) => ({ type: "approval", tool_call_id: id, approve, ...(reason ? { reason } : {}) }));
    const [path, besides] = placeOf(this.run);
    try {
      const next = await this.readOn();
      if (next) {
        this.show(next);
        this.beaten(approve, next.id);
        return;
      }
      // After one that came to nothing it is another request, or it would be answered by that.
      const otid = otidOf(this.run, approve) + (this.doubted ? `-after-${this.doubted}` : "");
      const message = { type: "approval", otid, approvals };
      const id = await begin(path, { streaming: true, background: true, messages: [message], ...besides });
      if (!this.isLeft) go(runAddress(id));
    } catch (error) {
      if (error.status === 409 && error.runId) this.beaten(approve, error.runId, error.otid);
      else this.complain(`Not answered. ${REASONS[error.status] ?? error.message}`);
    } finally {
      this.isSending = false;
      this.hold();
    }
  }
}
