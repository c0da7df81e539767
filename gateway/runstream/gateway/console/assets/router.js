// Addresses: each view has one, filters stand in its query, and back leads back. No address ever has a credential in it.

const VIEWS = [
  [/^\/console\/?$/, "runs"],
  [/^\/console\/try$/, "try"],
  [/^\/console\/health$/, "health"],
  [/^\/console\/runs\/([^/]+)$/, "run"],
];

export const place = () => {
  for (const [pattern, view] of VIEWS) {
    const found = pattern.exec(location.pathname);
    if (found) return { view, id: found[1] && decodeURIComponent(found[1]), query: new URLSearchParams(location.search) };
  }
  return { view: "missing", query: new URLSearchParams() };
};

export const runsAddress = (query) => {
  const kept = Object.entries(query).filter(([, value]) => value);
  return kept.length ? `/console/?${new URLSearchParams(kept)}` : "/console/";
};

export const runAddress = (id) => `/console/runs/${encodeURIComponent(id)}`;

// What stands behind a `#` is no other place: who skips to the content stays where they are.
const address = () => location.pathname + location.search;
let shown;

const moved = () => {
  shown = address();
  dispatchEvent(new Event("runstream:place"));
};

export const go = (to, { replace = false } = {}) => {
  history[replace ? "replaceState" : "pushState"](null, "", to);
  moved();
};

export const listen = () => {
  shown = address();
  addEventListener("popstate", () => address() !== shown && moved());
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[href^='/console']");
    if (!link || event.button || event.ctrlKey || event.metaKey || event.shiftKey || link.target) return;
    event.preventDefault();
    if (link.href !== location.href) go(link.getAttribute("href"));
  });
};
