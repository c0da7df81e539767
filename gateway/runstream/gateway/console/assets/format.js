// Figures and ids as they are written everywhere in the console.

const whole = new Intl.NumberFormat("en");

export const count = (value) => (value === null || value === undefined ? "–" : whole.format(value));

export const plural = (value, one) => `${count(value)} ${one}${value === 1 ? "" : "s"}`;

export const span = (milliseconds) => {
  if (!Number.isFinite(milliseconds)) return "–";
  const seconds = Math.max(0, milliseconds) / 1000;
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${String(Math.floor(seconds % 60)).padStart(2, "0")} s`;
  const hours = Math.floor(seconds / 3600);
  if (hours < 48) return `${hours} h ${String(Math.floor((seconds % 3600) / 60)).padStart(2, "0")} min`;
  return `${Math.floor(hours / 24)} d`;
};

export const age = (milliseconds) => {
  const seconds = Math.max(0, Math.floor(milliseconds / 1000));
  if (!Number.isFinite(seconds)) return "–";
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")} min`;
  if (seconds < 48 * 3600) return `${Math.floor(seconds / 3600)}:${String(Math.floor((seconds % 3600) / 60)).padStart(2, "0")} h`;
  return `${Math.floor(seconds / 86400)} d`;
};

export const bytes = (value) => {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit && value < 100 ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
};

// The reference's times name no zone where they mean UTC.
export const moment = (text) => Date.parse(/(Z|[+-]\d\d:\d\d)$/.test(text) ? text : `${text}Z`);

export const clock = (milliseconds) =>
  new Date(milliseconds).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });

export const when = (milliseconds) =>
  `${new Date(milliseconds).toLocaleDateString("sv-SE")} ${clock(milliseconds)}`;

const DEEPEST = 40;

// Breaks JSON into lines as it was written: read and written anew its long numbers would be rounded, and keys that are there
// twice gone.
export const laidOut = (json) => {
  let depth = 0;
  const line = (by) => {
    depth += by;
    return `\n${"  ".repeat(Math.min(depth, DEEPEST))}`;
  };
  return json.replace(/"[^"\\]*(?:\\.[^"\\]*)*"|[{[]\s*[}\]]|[{}[\],:]|\s+/g, (part) => {
    if (part === "{" || part === "[") return part + line(1);
    if (part === "}" || part === "]") return line(-1) + part;
    if (part === ",") return part + line(0);
    if (part === ":") return ": ";
    return part[0] === '"' ? part : part.replace(/\s/g, "");
  });
};

// What turns the direction of text shows as JSON may write it: else what is called could look like something else.
export const unturned = (text) =>
  text.replace(/[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, (mark) => `\\u${mark.charCodeAt(0).toString(16).padStart(4, "0")}`);

// As much of an id as tells it from its neighbours; the whole stands in the title.
export const short = (id) => (id ? id.replace(/^([a-z]+-[0-9a-f]{8})-.*$/, "$1…") : "–");
