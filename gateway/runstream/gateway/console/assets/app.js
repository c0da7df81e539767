// Starts the console, and shows the view that the address names.

import { ask, paths } from "./api.js";
import { announce, h, mark, say } from "./dom.js";
import { healthView } from "./health.js";
import { missingView } from "./missing.js";
import { listen, place } from "./router.js";
import { runView } from "./run.js";
import { runsView } from "./runs.js";
import { signInView } from "./signin.js";
import { tryView } from "./tryit.js";

const MAKERS = { runs: runsView, run: runView, try: tryView, health: healthView, missing: missingView };
const main = document.getElementById("main");
let session = null;
let shown = null;
let isFirst = true;

const theme = document.getElementById("theme");
theme.value = document.documentElement.dataset.theme ?? "auto";
theme.addEventListener("change", () => {
  if (theme.value === "auto") {
    delete document.documentElement.dataset.theme;
    localStorage.removeItem("runstream-theme");
  } else {
    document.documentElement.dataset.theme = theme.value;
    localStorage.setItem("runstream-theme", theme.value);
  }
});

const put = (view, name, id) => {
  shown?.view.close?.();
  main.replaceChildren(view.element);
  document.title = `${view.title} · runstream console`;
  for (const link of document.querySelectorAll(".bar nav a")) {
    mark(link, "aria-current", link.dataset.view === name ? "page" : null);
  }
  shown = { view, name, id };
  if (!isFirst) {
    main.focus({ preventScroll: true });
    scrollTo(0, 0);
    announce(view.title);
  }
  isFirst = false;
};

const failed = (title, error, again) => put({
  title,
  element: h("div", { class: "alert", role: "alert" }, h("h1", { text: title }), h("p", { text: error.message }),
    h("button", { type: "button", text: "Try again", onclick: again })),
});

const show = () => {
  if (session === null) return;
  const { view: name, id, query } = place();
  if (shown?.name === name && shown.id === id && shown.view.turn) shown.view.turn(query);
  else put(MAKERS[name]({ id, query, session }), name, id);
};

const greet = (found) => {
  session = found;
  const where = found.is_asked ? `tenant ${found.tenant} · ` : "";
  say(document.getElementById("where"), `${where}gateway ${found.gateway} · ${found.version}`);
  document.getElementById("sign-out").hidden = !found.is_asked;
  document.getElementById("try-link").hidden = !found.has_demo_agent;
  show();
};

const askWho = () => {
  if (shown?.name === "sign-in") return; // Whatever else was asked is refused, too, and must not clear what is typed.
  session = null;
  document.getElementById("sign-out").hidden = true;
  say(document.getElementById("where"), "");
  put(signInView({ welcome: greet }), "sign-in");
};

const start = async () => {
  try {
    greet(await ask(paths.session));
  } catch (error) {
    if (error.status !== 401) failed("Not there", error, start);
  }
};

// Who leaves must know whether the cookie is gone: this page cannot see it.
const signOut = async () => {
  try {
    await ask(paths.session, { method: "DELETE" });
    askWho();
  } catch (error) {
    if (error.status !== 401) failed("Not signed out", error, signOut);
  }
};

addEventListener("runstream:place", show);
addEventListener("runstream:stranger", askWho);
document.getElementById("sign-out").addEventListener("click", signOut);
addEventListener("pagehide", () => shown?.view.rest?.());
addEventListener("pageshow", (event) => event.persisted && shown?.view.wake?.());
listen();
start();
