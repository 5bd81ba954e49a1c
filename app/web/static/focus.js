/** Keeps the focus in the page: what has it may be disabled while a request runs, or leave with what it acted on. */

const FOCUSABLE = "a[href], button, input, select, textarea, summary, [tabindex]";

/** Until it can have the focus again, the heading of the view has it, from where Tab leads on. */
export function keepFocus(main) {
  let last = null; // in `main`: where the user is
  let back = null; // to return to

  addEventListener("pointerdown", ({ target }) => (last = target.closest?.(FOCUSABLE) ?? null), true); // null: the user left it
  main.addEventListener("focusin", ({ target }) => (last = target));
  main.addEventListener("focusout", () => setTimeout(restore)); // whoever is next has it by then
  new MutationObserver(restore).observe(main, { subtree: true, childList: true, attributeFilter: ["disabled", "hidden"] });

  function restore() {
    const heading = main.querySelector("h1");
    if (back && usable(back) && [document.body, heading].includes(document.activeElement)) {
      back.focus({ preventScroll: true });
      back = null;
    } else if (last && document.activeElement === document.body && !usable(last)) {
      if (last !== heading) back = last;
      heading?.focus({ preventScroll: true });
    } else if (document.activeElement !== heading) back = null;
  }
}

const usable = (element) => element.isConnected && !element.disabled && element.checkVisibility();
