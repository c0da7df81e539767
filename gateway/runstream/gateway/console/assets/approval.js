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

const UNSEEN = new Set([403, 404]); // A key that is for less than what came after, or a run that is kept no longer.

export const asksForApproval = (run) => run?.status === "completed" && run.stop_reason === "requires_approval";

// The run that came next where this one waits; none, and it waits still: whatever is no answer is refused meanwhile. One that
// is queued may be either.
const nextOf = async (run) => {
  const place = run.conversation_id ? { conversation_id: run.conversation_id } : { agent_id: run.agent_id };
  const isHere = (each) => (each.conversation_id ?? null) === (run.conversation_id ?? null)
    && (run.conversation_id || moment(each.created_at) >= moment(run.completed_at));
  for (let before = run.id; ;) {
    const newer = (await ask(paths.runs({ ...place, before, limit: PAGE }))).reverse();
    const next = newer.find((each) => isHere(each) && !each.metadata?.error?.message?.startsWith(REFUSED_FOR_WAITING));
    if (next) return next;
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

const linkTo = (id) => h("a", { class: "mono", href: runAddress(id), title: id, text: short(id) });

// Of one otid for each decision on a run: whoever presses twice, or decides what somebody else has decided, starts no second
// run, and whoever decides otherwise is not led to the run of somebody else's decision.
const otidOf = (run, approve) => `console-answers-${run.id}-${approve ? "approve" : "deny"}`;

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
    if (this.isAnswered || this.isUnseen || this.isSending || !request?.calls.length) return;
    this.run = run;
    this.calls = request.calls;
    try {
      const next = await nextOf(run);
      if (this.isSending) return;
      this.show(next);
    } catch (error) {
      if (!UNSEEN.has(error.status)) throw error;
      this.unseen(error);
    }
    if (this.element.parentNode !== request.element) request.element.append(this.element);
  }

  show(next) {
    this.isQueued = next?.status === "created";
    this.isAnswered = next !== undefined && !this.isQueued;
    const hadFocus = this.buttons.contains(document.activeElement);
    if (!next) this.wait();
    else this.tell(this.isQueued ? "It is being answered. What waits to go on: " : "It does not wait any more. What came next: ", next.id);
    if (this.isAnswered) this.buttons.remove();
    this.hold();
    if (hadFocus && !this.buttons.contains(document.activeElement)) this.said.querySelector("a")?.focus();
  }

  wait() {
    const all = this.calls.length > 1 ? ` all ${this.calls.length}` : "";
    say(this.approve, `Approve${all}`);
    say(this.deny, `Deny${all}`);
    const waits = "The agent waits for an answer.";
    this.tell(this.mayAnswer ? waits : `${waits} Yours needs the scope runs:write.`);
  }

  // Written anew only when it is something else: a link keeps the focus it has.
  tell(words, id) {
    if (this.told === words + id) return;
    this.told = words + id;
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
    for (const button of [this.approve, this.deny]) button.disabled = Boolean(this.isSending || this.isQueued);
  }

  complain(...words) {
    this.alert.replaceChildren(...words);
    this.alert.hidden = false;
  }

  // Somebody else was first. What they decided is known where they did it here.
  beaten(approve, id, otid) {
    this.isBeaten = true;
    const [tried, other] = approve ? ["approved", "denied"] : ["denied", "approved"];
    const first = otid === otidOf(this.run, !approve) ? `somebody else has ${other} it` : "somebody else was first";
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
      const next = await nextOf(this.run);
      if (next) {
        this.show(next);
        this.beaten(approve, next.id);
        return;
      }
      const message = { type: "approval", otid: otidOf(this.run, approve), approvals };
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
