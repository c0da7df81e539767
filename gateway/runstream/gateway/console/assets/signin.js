// Asks for a key or a token, and exchanges it for a cookie that no script can read. It is kept nowhere else: not in this
// page once it was sent, not in storage, which every script of this origin could read, and not in an address, which is
// written down in histories and logs.

import { ask, paths } from "./api.js";
import { h, say } from "./dom.js";

const SENDABLE = /^[\x21-\x7e]+$/; // In a header; no key and no token has anything else in it.
const NOBODYS = "This key or token admits nobody here.";
const NOT_KEPT =
  "The key is good, but the browser has not kept its cookie: it does so over https, and on localhost, and nowhere else.";

export const signInView = ({ welcome }) => {
  const key = h("input", {
    id: "key", type: "password", autocomplete: "off", spellcheck: "false", required: true, "aria-describedby": "key-note",
  });
  const said = h("p", { class: "alert", role: "alert", hidden: true });
  const press = h("button", { class: "main", type: "submit", text: "Sign in" });

  const complain = (text) => {
    press.disabled = false;
    say(said, text);
    said.hidden = false;
    key.focus();
  };
  const submit = async (event) => {
    event.preventDefault();
    const given = key.value.trim();
    if (!SENDABLE.test(given)) {
      complain(NOBODYS);
      return;
    }
    press.disabled = true;
    said.hidden = true;
    try {
      await ask(paths.session, { method: "POST", key: given });
      key.value = "";
      const found = await ask(paths.session, { isTried: true }).catch((error) => {
        throw error.status === 401 ? new Error(NOT_KEPT) : error;
      });
      welcome(found);
    } catch (error) {
      complain(error.status === 401 ? NOBODYS : error.message);
    }
  };

  const form = h(
    "form",
    { onsubmit: submit },
    h("label", { class: "field", for: "key" }, "Key or token", key),
    said,
    h("div", { class: "row" }, press),
  );
  const note = h("p", {
    class: "note", id: "key-note",
    text: "It needs the scope runs:read; runs:cancel to cancel; runs:write to approve, to deny, and to try it. It is exchanged for a cookie that lasts an hour at most and that no script can read; the page keeps nothing of it.",
  });
  return { title: "Sign in", element: h("section", { class: "panel sign-in" }, h("h1", { text: "Sign in" }), form, note) };
};
