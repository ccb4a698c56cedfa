"use strict";

// Cards that are shown before a reader asks for all of them.
const FIRST = 24;

for (const browser of document.querySelectorAll(".browser")) {
  const form = browser.querySelector("form");
  const list = browser.querySelector(".cards");
  const cards = [...list.children];
  const more = browser.querySelector(".more");
  const status = browser.querySelector(".status");
  const loss = (card, unknown) => ("loss" in card.dataset ? Number(card.dataset.loss) : unknown);
  const orders = {
    high: (a, b) => loss(b, -Infinity) - loss(a, -Infinity),
    low: (a, b) => loss(a, Infinity) - loss(b, Infinity),
    index: (a, b) => a.dataset.index - b.dataset.index,
  };

  function show(all) {
    const chosen = new FormData(form);
    const attack = chosen.get("attack");
    const outcomes = chosen.getAll("outcome");
    for (const part of browser.querySelectorAll(".of-row")) {
      part.hidden = part.dataset.attack !== attack;
    }
    const own = cards.filter((card) => card.dataset.attack === attack);
    const found = own.filter((card) => outcomes.includes(card.dataset.outcome));
    found.sort(orders[chosen.get("sort")]);
    const shown = all ? found : found.slice(0, FIRST);
    list.replaceChildren(...shown);
    more.hidden = shown.length === found.length;
    more.textContent = `Show all ${found.length}`;
    const cut = more.hidden ? "" : `, the first ${shown.length} of them are shown`;
    const noun = own.length === 1 ? "image" : "images";
    status.textContent = `${found.length} of ${own.length} ${noun}${cut}`;
  }

  form.addEventListener("change", () => show(false));
  form.addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", () => show(true));
  show(false);
}

// A box that scrolls can be scrolled by keys as well.
const reach = new ResizeObserver((changes) => {
  for (const { target } of changes) {
    target.tabIndex = target.scrollWidth > target.clientWidth ? 0 : -1;
  }
});
for (const box of document.querySelectorAll(".wide")) {
  reach.observe(box);
}
