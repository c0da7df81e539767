// Elements made by hand. Text is only ever put in as text: the policy of the page allows nothing else.

const fill = (element, properties, children) => {
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "text") element.textContent = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
};

export const h = (tag, properties, ...children) => fill(document.createElement(tag), properties, children);

export const s = (tag, properties, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), properties, children);

// Writes only what has changed: a page that looks every second must not be laid out every second.
export const say = (element, text) => {
  if (element.textContent !== text) element.textContent = text;
};

export const mark = (element, name, value) => {
  if (value === null || value === undefined || value === false) element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, String(value));
};

// Makes what an element holds as it is wanted, and leaves what is so already: made anew it would lose the focus, what was
// selected in it, and how far it was scrolled.
export const mend = (there, wanted) => {
  const [old, fresh] = [[...there.childNodes], [...wanted.childNodes]];
  if (old.length !== fresh.length || old.some((node, index) => node.nodeName !== fresh[index].nodeName)) {
    there.replaceChildren(...fresh);
    return;
  }
  old.forEach((node, index) => {
    if (node.nodeType !== Node.TEXT_NODE) mend(node, fresh[index]);
    else if (node.data !== fresh[index].data) node.data = fresh[index].data;
  });
};

// For those who listen: few words, and not for everything that changes. Written anew also where it is the same: whoever
// checks twice hears twice that nothing is missing.
export const announce = (text) => {
  document.getElementById("said").textContent = text;
};
