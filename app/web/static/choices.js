/** Pickers made of radio buttons and check boxes: the keyboard works as the browser's does. Knows no method. */

import { h, uniqueId, write } from "./dom.js";

/** options: [{value, title, text, note}]; `more`: {title, style, options}, further ones behind a fold. Returns {element, value()}. */
export function radios({ legend, options, style, more, changed }) {
  const name = uniqueId("choice");
  let chosen = options[0]?.value;

  function option(each) {
    const id = uniqueId("option");
    const input = h("input", {
      type: "radio", name, id, value: each.value, checked: each.value === chosen,
      "aria-describedby": each.text && `${id}-text`,
      on: { change: () => ((chosen = each.value), say(), changed(chosen)) },
    });
    return h("div", { class: "option" }, input, h("label", { for: id },
      h("span", { class: "option-title" }, each.title, each.note && h("span", { class: "tag" }, each.note)),
      each.text && h("span", { class: "option-text", id: `${id}-text` }, each.text)));
  }
  const summary = h("summary", {}, more?.title);
  /** A choice behind the closed fold is named on it. */
  function say() {
    const hidden = more?.options.find((each) => each.value === chosen);
    if (more) write(summary, hidden ? `${more.title}: ${hidden.title}` : more.title);
  }
  const element = h("fieldset", { class: "picker" }, h("legend", {}, legend),
    h("div", { class: style }, options.map(option)),
    more?.options.length > 0 && h("details", { class: "more" }, summary,
      h("div", { class: more.style }, more.options.map(option))));
  return { element, value: () => chosen };
}

/** Any number of options; returns {element, values()}. */
export function checks({ legend, help, options, changed }) {
  const boxes = options.map((each) => {
    const id = uniqueId("check");
    const input = h("input", { type: "checkbox", id, on: { change: changed } });
    return { input, value: each.value, element: h("div", { class: "check" }, input, h("label", { for: id }, each.title)) };
  });
  const element = h("fieldset", { class: "picker" }, h("legend", {}, legend),
    h("div", { class: "checks" }, boxes.map((box) => box.element)), help && h("p", { class: "field-help" }, help));
  return { element, values: () => boxes.filter((box) => box.input.checked).map((box) => box.value) };
}
