// Addresses: each view has one, filters stand in its query, and back leads back. No address ever has a credential in it.

const VIEWS = [
  [/^\/console\/?$/, "runs"],
  [/^\/console\/try$/, "try"],
  [/^\/console\/health$/, "health"],
  [/^\/console\/runs\/([^/]+)$/, "run"],
];

// Whoever typed an address may have typed what stands for no text: there is no page then.
const decoded = (part) => {
  try {
    return decodeURIComponent(part);
  } catch {
    return null;
  }
};

export const place = () => {
  for (const [pattern, view] of VIEWS) {
    const found = pattern.exec(location.pathname);
    const id = found?.[1] && decoded(found[1]);
    if (found && id !== null) return { view, id, query: new URLSearchParams(location.search) };
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
