// A button that copies a whole id: they are shown short, and the command line wants them whole.

import { announce, h, mark, s } from "./dom.js";

const DONE = 1500;

// Over plain http, other than on localhost, a page has no clipboard: there the old way still goes.
const put = async (text) => {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const box = h("textarea", { class: "hidden", "aria-hidden": "true", text });
  document.body.append(box);
  box.select();
  const isDone = document.execCommand("copy");
  box.remove();
  if (!isDone) throw new Error("The browser does not let this page copy.");
};

const copy = async (button) => {
  try {
    await put(button.dataset.text);
    mark(button, "data-done", "");
    setTimeout(() => mark(button, "data-done", null), DONE);
    announce("Copied.");
  } catch {
    announce("Not copied: the browser does not let this page.");
  }
  button.focus({ preventScroll: true });
};

export const copyButton = () => {
  const sheets = s("svg", { viewBox: "0 0 16 16", "aria-hidden": "true" }, s("path", { class: "sheets", d: "M5.5 5.5h8v8h-8zM10.5 5.5v-3h-8v8h3" }), s("path", { class: "tick", d: "M3 8.5l3.5 3.5L13 4.5" }));
  return h("button", { type: "button", class: "copy", hidden: true, onclick: (event) => copy(event.currentTarget) }, sheets);
};

// What it copies; nothing, and there is nothing to press.
export const mendCopy = (button, id) => {
  button.hidden = !id;
  mark(button, "data-text", id);
  mark(button, "title", id ? `Copy ${id}` : null);
  mark(button, "aria-label", id ? `Copy ${id}` : null);
};
