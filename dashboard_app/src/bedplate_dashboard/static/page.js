// Keeps the page fresh: asks the server for its changing part and changes only the nodes that differ, so that
// a selection, the focus and the scroll position survive. Ages run on the browser's monotonic clock.
"use strict";

const PERIOD = 2000;
const LOST_AFTER = 3 * PERIOD + 500;
const main = document.getElementById("live");
let received = performance.now();

function morph(live, next) {
  if (live.nodeType !== next.nodeType || live.nodeName !== next.nodeName) {
    live.replaceWith(next);
    return;
  }
  if (live.nodeType !== Node.ELEMENT_NODE) {
    if (live.data !== next.data) live.data = next.data;
    return;
  }
  for (const { name } of [...live.attributes]) {
    if (!next.hasAttribute(name)) live.removeAttribute(name);
  }
  for (const { name, value } of next.attributes) {
    if (live.getAttribute(name) !== value) live.setAttribute(name, value);
  }
  const old = [...live.childNodes];
  const fresh = [...next.childNodes];
  fresh.forEach((node, index) => (index < old.length ? morph(old[index], node) : live.append(node)));
  old.slice(fresh.length).forEach((node) => node.remove());
}

function length(seconds) {
  if (seconds < 120) return `${Math.max(0, Math.round(seconds))} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} d`;
}

function tick() {
  const passed = (performance.now() - received) / 1000;
  for (const element of document.querySelectorAll("[data-age]")) {
    const text = length(Number(element.dataset.age) + passed);
    if (element.textContent !== text) element.textContent = text;
  }
  if (passed * 1000 > LOST_AFTER && !main.classList.contains("lost")) lose();
}

function lose() {
  const [icon, sentence] = document.getElementById("lost").content.cloneNode(true).children;
  main.className = "none lost";
  main.dataset.word = "Unknown";
  main.dataset.icon = "unknown";
  main.querySelector(".verdict .icon").replaceWith(icon);
  main.querySelector(".sentence").replaceChildren(...sentence.childNodes);
  label();
}

function label() {
  const name = document.querySelector("h1").textContent;
  document.title = `${main.dataset.word} · ${name}`;
  const link = document.querySelector("link[rel=icon]");
  const href = `/static/icon-${main.dataset.icon}.svg`;
  if (link.getAttribute("href") !== href) link.setAttribute("href", href);
}

async function refresh() {
  const began = performance.now();
  try {
    const response = await fetch("/live", { cache: "no-store", signal: AbortSignal.timeout(2500) });
    const body = await response.text();
    const next = new DOMParser().parseFromString(body, "text/html").getElementById("live");
    if (response.ok && next) {
      received = performance.now();
      morph(main, next);
      label();
    }
  } catch {
    // No answer: tick() greys the page once two answers are missing.
  }
  tick();
  setTimeout(refresh, Math.max(0, PERIOD - (performance.now() - began)));
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  // The clipboard interface exists on https only; selecting and copying works everywhere.
  getSelection().selectAllChildren(document.getElementById(button.dataset.copy));
  button.textContent = document.execCommand("copy") ? "Copied" : "Selected";
  setTimeout(() => (button.textContent = "Copy"), 1500);
});

document.documentElement.classList.add("js");
setInterval(tick, 1000);
tick();
setTimeout(refresh, PERIOD);
