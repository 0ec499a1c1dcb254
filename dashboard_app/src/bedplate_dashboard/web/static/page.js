// Keeps the page up to date. The server pushes the changing part after each poll (`/events`); without events the page
// requests the same text itself (`/live`). Only nodes that differ are changed, so that selection, focus and scroll position
// survive. Ages count on the browser's monotonic clock from the server's values, so its wall clock does not matter.
"use strict";

const PERIOD = 2000; // ms between two polls of the server
const LOST_AFTER = 4000; // two missed polls; one poll takes up to 1.5 s
const STALE_AFTER = 5500; // the server's own limit (STALE_SECONDS in health/thresholds.py)
const RECONNECT_AFTER = 30000; // the server's Retry-After when it has no stream left

const main = document.getElementById("live");
let received = performance.now();
let requested = received;
let opened = -Infinity;
let source = null;

function morph(live, next) {
  if (live.nodeType !== next.nodeType || live.nodeName !== next.nodeName) {
    live.replaceWith(next);
    return;
  }
  if (live.nodeType !== Node.ELEMENT_NODE) {
    if (live.data !== next.data) live.data = next.data;
    return;
  }
  if ("keep" in live.dataset) return; // the plots are drawn by plots.js, not by the server
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

function show(text) {
  const next = new DOMParser().parseFromString(text, "text/html").getElementById("live");
  if (!next) return;
  received = performance.now();
  morph(main, next);
  updateTitle();
  updateAges();
}

function formatAge(seconds) {
  if (seconds < 120) return `${Math.max(0, Math.round(seconds))} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} d`;
}

function updateAges() {
  const passed = performance.now() - received;
  for (const element of document.querySelectorAll("[data-age]")) {
    const text = formatAge(Number(element.dataset.age) + passed / 1000);
    if (element.textContent !== text) element.textContent = text;
  }
  const age = Number(main.dataset.pollAge) * 1000 + passed;
  if ((passed > LOST_AFTER || age > STALE_AFTER) && !main.classList.contains("none")) showLost();
}

function showLost() {
  const [icon, sentence, next] = document.getElementById("lost").content.cloneNode(true).children;
  main.className = "none lost";
  main.dataset.word = "Unknown";
  main.dataset.icon = "unknown";
  main.querySelector(".verdict .icon").replaceWith(icon);
  main.querySelector(".sentence").replaceChildren(...sentence.childNodes);
  main.querySelector(".next").replaceWith(next);
  updateTitle();
}

function updateTitle() {
  const name = document.querySelector("h1").textContent;
  const title = `${main.dataset.word} · ${name}`;
  if (document.title !== title) document.title = title;
  const link = document.querySelector("link[rel=icon]");
  const href = `/static/icon-${main.dataset.icon}.svg`;
  if (!link.getAttribute("href").startsWith(href)) link.setAttribute("href", href);
}

function connect() {
  opened = performance.now();
  source?.close();
  source = new EventSource("/events");
  source.addEventListener("live", (event) => show(event.data));
}

async function requestLive() {
  requested = performance.now();
  try {
    const response = await fetch("/live", { cache: "no-store", signal: AbortSignal.timeout(1500) });
    if (response.ok) show(await response.text());
  } catch {
    // No answer: updateAges() marks the page as lost after two missed polls.
  }
}

function checkFreshness() {
  updateAges();
  const now = performance.now();
  const silence = now - received;
  const patience = source.readyState === EventSource.OPEN ? PERIOD + 500 : PERIOD - 250;
  if (silence > patience && now - requested > PERIOD - 250) requestLive();
  // An EventSource connects again by itself after an error, but not after a refusal or a connection that hangs.
  if (silence > LOST_AFTER && now - opened > RECONNECT_AFTER) connect();
  if (source.readyState === EventSource.CLOSED && now - opened > RECONNECT_AFTER) connect();
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  // The clipboard API exists on https only; selecting and copying works everywhere.
  getSelection().selectAllChildren(document.getElementById(button.dataset.copy));
  button.textContent = document.execCommand("copy") ? "Copied" : "Selected";
  setTimeout(() => (button.textContent = "Copy"), 1500);
});
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) checkFreshness();
});

document.documentElement.classList.add("js");
updateTitle();
updateAges();
connect();
setInterval(checkFreshness, 500);
