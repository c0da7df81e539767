// When each message of a log was stored: bars where they came close together, bands where nothing came. One path holds
// all bars, so that a run of a hundred thousand messages draws as one of ten does.

import { h, s, say } from "./dom.js";
import { SHOWN_KINDS } from "./follow.js";
import { count, plural, span } from "./format.js";

const HEIGHT = 84;
const FLOOR = 66;
const CEILING = 6;
const BAR = 3;
const LABELLED = 3;
const SILENCE = 1000;

const silencesOf = (times, until) => {
  const found = [];
  for (let index = 1; index <= times.length; index += 1) {
    const end = index < times.length ? times[index] : until;
    if (end - times[index - 1] >= SILENCE) found.push([times[index - 1], end]);
  }
  return found;
};

const ticksOf = (times, x) => times.map((time) => `M${x(time).toFixed(1)} ${FLOOR}V${(FLOOR + CEILING) / 2}`).join("");

const columnsOf = (times, x, width) => {
  const columns = new Uint32Array(Math.ceil(width / BAR) + 1);
  for (const time of times) columns[Math.floor(x(time) / BAR)] += 1;
  const most = columns.reduce((left, right) => Math.max(left, right), 1);
  let bars = "";
  columns.forEach((number, column) => {
    if (!number) return;
    const top = FLOOR - Math.max(3, (FLOOR - CEILING) * (Math.log1p(number) / Math.log1p(Math.max(most, 4))));
    bars += `M${column * BAR + BAR / 2} ${FLOOR}V${top.toFixed(1)}`;
  });
  return bars;
};

export class Timeline {
  constructor() {
    this.caption = h("figcaption", { text: "Reading the log …" });
    this.drawing = s("svg", { role: "img", "aria-label": "Chunks over time", preserveAspectRatio: "none" });
    this.element = h("figure", { class: "panel timeline" }, this.drawing, this.caption);
    this.watch = new ResizeObserver(() => this.draw());
    this.watch.observe(this.element);
  }

  close() {
    this.watch.disconnect();
  }

  show(outline, isLive) {
    this.outline = outline;
    this.isLive = isLive;
    this.draw();
  }

  fail(why) {
    if (!this.outline?.seq_ids.length) say(this.caption, `The log is not read: ${why}`);
  }

  draw() {
    const times = this.outline?.stored_at_ms ?? [];
    const width = Math.floor(this.drawing.clientWidth);
    if (!times.length || !width) return;
    const first = times[0];
    // Clocks differ: the time of the gateway's NATS and that of this browser.
    const until = this.isLive ? Math.max(times.at(-1), Date.now()) : times.at(-1);
    const length = Math.max(until - first, 1);
    const x = (time) => ((time - first) / length) * (width - BAR) + BAR / 2;
    // Few are drawn where they are: columns would make a rhythm of their own. Of many, columns count.
    const isExact = times.length * BAR * 2 < width;
    const bars = isExact ? ticksOf(times, x) : columnsOf(times, x, width);
    const silences = silencesOf(times, until);
    const longest = [...silences].sort((left, right) => right[1] - right[0] - (left[1] - left[0])).slice(0, LABELLED);
    const bands = silences.map(([from, to]) => `M${x(from).toFixed(1)} ${CEILING}H${x(to).toFixed(1)}V${FLOOR}H${x(from).toFixed(1)}Z`).join("");
    const labels = longest
      .filter(([from, to]) => x(to) - x(from) > 56)
      .map(([from, to]) => s("text", { class: "warned", x: (x(from) + x(to)) / 2, y: (FLOOR + CEILING) / 2 + 4, "text-anchor": "middle", text: span(to - from) }));
    const errors = times.filter((_, index) => this.outline.kinds[index] === "error").map((time) => `M${x(time)} ${CEILING}V${FLOOR}`).join("");
    this.drawing.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    this.drawing.replaceChildren(
      s("path", { class: "silence", d: bands }),
      s("path", { class: "axis", d: `M0 ${FLOOR + 0.5}H${width}` }),
      s("path", { class: "bars", d: bars, "stroke-width": isExact ? 1.25 : BAR - 1 }),
      s("path", { class: "ends", d: errors }),
      ...labels,
      s("text", { x: 0, y: HEIGHT - 4, text: "0" }),
      s("text", { x: width, y: HEIGHT - 4, "text-anchor": "end", text: span(length) }),
    );
    this.describe(times.filter((_, index) => SHOWN_KINDS.has(this.outline.kinds[index])), silences, length);
  }

  // Only what readers get is counted: so it is as many as they have, when they have all.
  describe(times, silences, length) {
    let busiest = 0;
    for (let from = 0, to = 0; to < times.length; to += 1) {
      while (times[to] - times[from] >= 1000) from += 1;
      busiest = Math.max(busiest, to - from + 1);
    }
    const longest = silences.reduce((most, [from, to]) => Math.max(most, to - from), 0);
    const facts = [
      [plural(times.length, "chunk"), "stored"],
      [span(length), this.isLive ? "so far" : "in all"],
      [count(busiest), "in the busiest second"],
      longest ? [span(longest), "longest silence"] : ["no", "silence of a second or more"],
    ];
    if (this.caption.children.length !== facts.length) this.caption.replaceChildren(...facts.map(() => h("span", {}, h("strong"), " ", h("span"))));
    facts.forEach(([figure, text], index) => {
      const part = this.caption.children[index];
      say(part.firstChild, figure);
      say(part.lastChild, text);
    });
  }
}
