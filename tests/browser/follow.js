// Follows the run at `url`, and reports every event; `laterMs` after the browser has given up, that it still has.
const source = new EventSource(url);
for (const type of ["open", "message", "run_error", "error"]) {
  source.addEventListener(type, ({ data, lastEventId }) => {
    report({ type, data, id: lastEventId, state: source.readyState });
  });
}
source.addEventListener("error", () => {
  if (source.readyState === EventSource.CLOSED) {
    setTimeout(() => report({ type: "later", state: source.readyState }), laterMs);
  }
});
