// Tables that read as cards on a phone: each cell knows the name of its column. The roles are said, as a table that is laid
// out as blocks is none to a browser any more.

import { h } from "./dom.js";

export const rowOf = (heads, cells, given = {}) => h("tr", { role: "row", ...given }, ...cells.map((text, index) =>
  h("td", { role: "cell", class: heads[index][1] ? "num" : null, "data-label": heads[index][0], text })));

export const tableOf = (label, heads, body) => h("div", { class: "table-wrap", tabindex: "0", role: "region", "aria-label": label },
  h("table", { role: "table", "aria-label": label },
    h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, ...heads.map(([text, isNumber]) => h("th", { role: "columnheader", scope: "col", class: isNumber ? "num" : null, text })))),
    body));
