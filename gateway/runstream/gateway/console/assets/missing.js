// What is shown where there is nothing: plainly, and with a way back.

import { h } from "./dom.js";
import { unturned } from "./format.js";
import { runsAddress } from "./router.js";

const RUN_ID = /^run-[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/;

const nothing = (title, ...said) => h("section", { class: "panel nothing" }, h("h1", { text: title }), ...said,
  h("p", { class: "row" }, h("a", { href: runsAddress({ status: "all" }), text: "All runs" }), h("a", { href: runsAddress({}), text: "Live runs" })));

export const noRun = (id) => nothing("There is no such run",
  h("p", { class: "mono", text: unturned(id) }),
  h("p", { text: RUN_ID.test(id)
    ? "It was never here, or it is past its retention and no longer kept, or it belongs to another tenant."
    : "This is not the id of a run: run- is followed by a whole UUID." }));

export const missingView = () => ({
  title: "No such page",
  element: nothing("There is no such page", h("p", {}, "The console has nothing at ", h("span", { class: "mono", text: location.pathname }), ".")),
});
