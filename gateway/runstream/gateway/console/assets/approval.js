// Approve or deny the tool calls that a run has ended with: the answer is a message, which a run of its own goes on from.

import { ask, begin, paths } from "./api.js";
import { announce, h, say } from "./dom.js";
import { moment, short } from "./format.js";
import { go, runAddress } from "./router.js";

const REFUSED_FOR_WAITING = "CONFLICT: Cannot send a new message: The agent is waiting for approval";
const PAGE = 100;

const REASONS = {
  0: "The gateway cannot be reached. Try again when it is back.",
  401: "You are not signed in any more.",
  403: "Your key may not answer: it needs the scope runs:write.",
  404: "The conversation is not there any more.",
  409: "Another run goes on in this conversation. Try again when it has ended.",
  429: "Too many runs were started just now. Try again in a minute.",
};

export const asksForApproval = (run) => run?.status === "completed" && run.stop_reason === "requires_approval";

// The run that came next where this one waits; none, and it waits still: whatever is no answer is refused meanwhile. Of one
// that nobody has looked at yet it is not known which of both it is.
const nextOf = async (run) => {
  const place = run.conversation_id ? { conversation_id: run.conversation_id } : { agent_id: run.agent_id };
  const isHere = (each) => (each.conversation_id ?? null) === (run.conversation_id ?? null)
    && (run.conversation_id || moment(each.created_at) >= moment(run.completed_at));
  for (let before = run.id; ;) {
    const newer = (await ask(paths.runs({ ...place, before, limit: PAGE }))).reverse();
    for (const each of newer.filter(isHere)) {
      if (each.status === "created") return undefined;
      if (!each.metadata?.error?.message?.startsWith(REFUSED_FOR_WAITING)) return each;
    }
    if (newer.length < PAGE) return undefined;
    before = newer.at(-1).id;
  }
};

// An agent's default conversation is answered as one, or it would not count as busy.
const placeOf = (run) => {
  if (run.conversation_id) return [paths.sayIn(run.conversation_id), {}];
  if (run.metadata?.run_type === "send_conversation_message") return [paths.sayIn("default"), { agent_id: run.agent_id }];
  return [paths.say(run.agent_id), {}];
};

export class Approval {
  constructor({ mayAnswer }) {
    this.mayAnswer = mayAnswer;
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
    if (this.isAnswered || this.isSending || !request?.calls.length) return;
    const next = await nextOf(run);
    if (this.isSending) return;
    this.run = run;
    this.calls = request.calls;
    if (next) this.answered(next.id);
    else this.wait();
    if (this.element.parentNode !== request.element) request.element.append(this.element);
  }

  wait() {
    const all = this.calls.length > 1 ? ` all ${this.calls.length}` : "";
    say(this.approve, `Approve${all}`);
    say(this.deny, `Deny${all}`);
    const waits = "The agent waits for an answer.";
    if (this.said.textContent === "") announce(waits);
    say(this.said, this.mayAnswer ? waits : `${waits} Yours needs the scope runs:write.`);
  }

  answered(id) {
    this.isAnswered = true;
    const hadFocus = this.buttons.contains(document.activeElement);
    const link = h("a", { class: "mono", href: runAddress(id), title: id, text: short(id) });
    this.buttons.remove();
    this.alert.hidden = true;
    this.said.replaceChildren("It does not wait any more. What came next: ", link);
    if (hadFocus) link.focus();
  }

  async answer(approve) {
    this.isSending = true;
    this.alert.hidden = true;
    for (const button of [this.approve, this.deny]) button.disabled = true;
    const reason = this.reason.value.trim();
    const approvals = this.calls.map((id) => ({ type: "approval", tool_call_id: id, approve, ...(reason ? { reason } : {}) }));
    const [path, besides] = placeOf(this.run);
    try {
      const next = await nextOf(this.run);
      if (next) return this.answered(next.id);
      // Of one otid for each run: whoever presses twice, or after somebody else, starts no second run.
      const message = { type: "approval", otid: `console-answers-${this.run.id}`, approvals };
      const id = await begin(path, { streaming: true, background: true, messages: [message], ...besides });
      if (!this.isLeft) go(runAddress(id));
    } catch (error) {
      say(this.alert, `Not answered. ${REASONS[error.status] ?? error.message}`);
      this.alert.hidden = false;
    } finally {
      this.isSending = false;
      for (const button of [this.approve, this.deny]) button.disabled = false;
    }
  }
}
