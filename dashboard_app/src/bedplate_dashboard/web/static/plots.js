// The history, drawn by uPlot from /api/history.json. The range is a parameter of the page's address.
"use strict";

const PLOTS = [
  { title: "Requests/s", series: [["requests_per_second", "all"], ["refused_429_per_second refused_503_per_second", "refused"]], format: formatCount },
  { title: "Tokens/s", series: [["tokens_out_per_second", "out"], ["tokens_in_per_second", "in"]], format: formatCount },
  { title: "First token", series: [["ttft_p50_seconds", "p50"], ["ttft_p95_seconds", "p95"]], format: formatSeconds },
  { title: "Queue", series: [["slots_busy", "running"], ["queue_waiting", "waiting"]], format: formatCount },
  { title: "GPU", series: [["gpu_utilization_ratio", "busiest"]], format: formatPercent, absent: true },
];
const REFRESH = { "1h": 20000, "1d": 120000 };
const RETRY = 10000;

const area = document.getElementById("plots");
const links = [...area.querySelectorAll("nav a")];
const moment = Object.assign(document.createElement("span"), { className: "moment" });
const drawn = [];
let range = links.find((link) => link.hasAttribute("aria-current")).dataset.range;
let timer = 0;

function formatCount(value) {
  if (value >= 1e6) return `${(value / 1e6).toPrecision(3)}M`;
  if (value >= 1e4) return `${(value / 1e3).toPrecision(3)}k`;
  if (value >= 100 || Number.isInteger(value)) return value.toFixed(0);
  return value.toFixed(value >= 1 ? 1 : 2);
}

function formatSeconds(value) {
  if (value === 0) return "0";
  return value >= 10 ? `${value.toFixed(0)} s` : value >= 1 ? `${value.toFixed(1)} s` : `${(value * 1000).toFixed(0)} ms`;
}

function formatPercent(value) {
  return `${Math.round(value * 100)}%`;
}

function readColour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function formatTime(unix) {
  return new Date(unix * 1000).toISOString().slice(11, 16);
}

// Shows the numbers under the pointer, or the newest ones.
function showValues(figure, plot, times, values, index) {
  const at = index ?? values[0].length - 1;
  [...figure.querySelectorAll(".key b")].forEach((number, series) => {
    const value = values[series][at];
    number.textContent = value == null ? "–" : plot.format(value);
  });
  moment.textContent = index == null ? "" : `${formatTime(times[index])} UTC`;
}

function describe(plot, values) {
  const parts = plot.series.map(([, name], series) => {
    const known = values[series].filter((value) => value != null);
    if (!known.length) return `${name} unknown`;
    return `${name} now ${plot.format(known.at(-1))}, highest ${plot.format(Math.max(...known))}`;
  });
  return `${plot.title}: ${parts.join("; ")}`;
}

function createPlot(plot) {
  const figure = document.createElement("figure");
  figure.className = "plot";
  const caption = document.createElement("figcaption");
  caption.append(Object.assign(document.createElement("b"), { textContent: plot.title }));
  for (const [, name] of plot.series) {
    const key = document.createElement("span");
    key.className = "key";
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
    for (const [attribute, value] of [["x1", 0], ["x2", 22], ["y1", 4], ["y2", 4]]) line.setAttribute(attribute, value);
    svg.setAttribute("aria-hidden", "true");
    svg.append(line);
    key.append(svg, `${name} `, document.createElement("b"));
    caption.append(key);
  }
  const canvas = document.createElement("div");
  canvas.className = "canvas";
  canvas.setAttribute("role", "img");
  figure.append(caption, canvas);
  area.append(figure);
  return { figure, canvas, chart: null };
}

function draw(slot, plot, times, values) {
  const { figure, canvas } = slot;
  canvas.setAttribute("aria-label", describe(plot, values));
  slot.showValues = (index) => showValues(figure, plot, times, values, index);
  slot.chart?.destroy();
  const axis = { stroke: readColour("--soft"), font: `11px ${getComputedStyle(document.body).fontFamily}`, grid: { stroke: readColour("--plot-grid"), width: 1 }, ticks: { show: false } };
  slot.chart = new uPlot(
    {
      width: canvas.clientWidth,
      height: canvas.clientHeight,
      padding: [8, 16, 0, 0],
      tzDate: (unix) => uPlot.tzDate(new Date(unix * 1000), "Etc/UTC"),
      legend: { show: false },
      cursor: { y: false, drag: { x: false, y: false }, sync: { key: "history" }, points: { size: 6 } },
      scales: { y: { range: (self, low, high) => [0, high > 0 ? high * 1.1 : 1] } },
      axes: [
        { ...axis, values: (self, splits) => splits.map(formatTime), space: 60, size: 24, gap: 3 },
        { ...axis, values: (self, splits) => splits.map(plot.format), space: 34, size: 46, gap: 4 },
      ],
      series: [
        {},
        ...plot.series.map((_, series) => ({
          stroke: readColour(`--plot-${series + 1}`),
          width: 1.6,
          dash: series ? [5, 3] : undefined,
          fill: series ? undefined : `${readColour("--plot-1")}1f`,
          points: { show: false },
        })),
      ],
      hooks: { setCursor: [(self) => slot.showValues(self.cursor.idx)] },
    },
    [times, ...values],
    canvas,
  );
  slot.showValues(null);
}

function addSeries(data, names) {
  return data.times.map((_, at) => {
    const known = names.map((name) => data.series[name]?.[at]).filter((value) => value != null);
    return known.length ? known.reduce((total, value) => total + value) : null;
  });
}

function drawAll(data) {
  PLOTS.forEach((plot, number) => {
    const values = plot.series.map(([names]) => addSeries(data, names.split(" ")));
    drawn[number] ??= createPlot(plot);
    drawn[number].figure.hidden = plot.absent && values.flat().every((value) => value == null);
    if (!drawn[number].figure.hidden) draw(drawn[number], plot, data.times, values);
  });
}

let lastData = null;

async function refresh() {
  clearTimeout(timer);
  let wait = REFRESH[range];
  try {
    const response = await fetch(`/api/history.json?range=${range}`, { cache: "no-store", signal: AbortSignal.timeout(8000) });
    const data = await response.json();
    if (data.error || !response.ok) throw new Error(data.error);
    if (data.range === range) {
      lastData = data;
      drawAll(data);
      area.classList.remove("old");
    }
  } catch {
    area.classList.add("old"); // the section's head says why
    wait = RETRY;
  }
  timer = setTimeout(refresh, wait);
}

function selectRange(name) {
  range = name;
  for (const link of links) {
    if (link.dataset.range === name) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
  refresh();
}

for (const link of links) {
  link.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    history.replaceState(null, "", link.href);
    selectRange(link.dataset.range);
  });
}
area.querySelector("nav").append(moment);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => lastData && drawAll(lastData));
new ResizeObserver(() => {
  for (const { chart, canvas } of drawn) {
    if (chart && canvas.clientWidth !== chart.width) chart.setSize({ width: canvas.clientWidth, height: canvas.clientHeight });
  }
}).observe(area);
refresh();
