/** Elements from plain values. Text is always text: nothing on this page parses HTML or writes an inline style. */

const SVG = "http://www.w3.org/2000/svg";

/** h("p", {class: "quiet", on: {click: f}}, "text", child, ...). `null`, `false` and `undefined` children are left out. */
export function h(tag, properties = {}, ...children) {
  return build(document.createElement(tag), properties, children);
}

export function svg(tag, properties = {}, ...children) {
  return build(document.createElementNS(SVG, tag), properties, children);
}

const present = (children) => children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false);

function build(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) set(element, name, value);
  element.append(...present(children));
  return element;
}

function set(element, name, value) {
  if (name === "on") {
    for (const [type, listener] of Object.entries(value)) element.addEventListener(type, listener);
  } else if (name === "vars") {
    for (const [key, property] of Object.entries(value)) element.style.setProperty(`--${key}`, property);
  } else if (["value", "checked", "indeterminate"].includes(name) && element.namespaceURI !== SVG) {
    element[name] = value;
  } else if (value === true) {
    element.setAttribute(name, "");
  } else if (value !== false && value !== null && value !== undefined) {
    element.setAttribute(name, String(value));
  }
}

export function fill(element, ...children) {
  element.replaceChildren(...present(children));
  return element;
}

/** After "Show more", the first of the new items gets the focus: the button that had it may be gone. */
export function focusItem(place, selector, at) {
  const item = place.querySelectorAll(selector)[at];
  item?.setAttribute("tabindex", "-1");
  item?.focus();
}

/** Write only what changed, so that a screen reader and a text selection are left alone. */
export function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Say something once to a screen reader. */
export function announce(text) {
  write(document.getElementById("announcer"), text);
}

let count = 0;

/** A document-wide unique id for labels and descriptions. */
export function uniqueId(prefix) {
  count += 1;
  return `${prefix}-${count}`;
}
