// The chat page. The key stays in this tab's session storage, the conversation in this page's memory.
"use strict";

const KEY = "bedplate-key";
const POLL_AFTER = 500; // ms until the place in the queue is asked for, then every second
const MAX_IMAGE_BYTES = 10 * 1024 * 1024;
const SQUARES = 16; // longer queues are shown as a number only

const find = (id) => document.getElementById(id);
const composer = find("composer");
const prompt = find("prompt");
const log = find("log");
let key = sessionStorage.getItem(KEY) ?? "";
let messages = []; // what is sent: {role, content}
let images = []; // attached to the next message: {url, data}
let running = null; // the AbortController of the request in flight
let follows = true; // whether the page keeps the end in view
let lastTop = 0; // where it was scrolled to

function announce(text) {
  find("status").textContent = text;
}

function show(id, visible) {
  find(id).hidden = !visible;
}

const seconds = (value) => (value < 1 ? `${Math.round(value * 1000)} ms` : `${value < 10 ? value.toFixed(1) : Math.round(value)} s`);

// The key

function askForKey(message = "") {
  show("key", true);
  show("welcome", false);
  show("composer", messages.length > 0);
  find("key-error").textContent = message;
  show("key-error", message !== "");
  find("key-input").value = "";
  find("key-input").focus();
}

async function useKey(candidate) {
  if (!/^[!-~]+$/.test(candidate)) {
    askForKey("A key has no spaces and no letters with accents: paste it again.");
    return;
  }
  let models;
  try {
    models = await listModels(candidate);
  } catch (error) {
    if (error.status === 401) sessionStorage.removeItem(KEY);
    askForKey(error.message);
    return;
  }
  if (!models.length) {
    askForKey("No model can be used with this key now: ask the operator, who sees why with make health.");
    return;
  }
  key = candidate;
  sessionStorage.setItem(KEY, key);
  fillModels(models);
  show("key", false);
  show("welcome", !messages.length);
  for (const id of ["composer", "change", "new"]) show(id, true);
  prompt.focus();
}

function fillModels(models) {
  const chosen = find("model").value;
  // A model without the ability to complete makes vectors.
  const chats = models.filter((model) => !model.capabilities || model.capabilities.includes("completion"));
  find("model").replaceChildren(
    ...(chats.length ? chats : models).map((model) => {
      const option = new Option(model.id, model.id, false, model.id === chosen);
      option.dataset.sees = !model.capabilities || model.capabilities.includes("vision");
      return option;
    }),
  );
  find("model").parentElement.hidden = false;
  showModel();
}

function showModel() {
  const option = find("model").selectedOptions[0];
  show("attach", option?.dataset.sees === "true");
  prompt.placeholder = `Ask ${option?.value ?? ""}`;
  document.title = `${option?.value ?? ""} · Chat`;
}

// Images

function readImage(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => resolve(reader.result));
    reader.addEventListener("error", () => reject(reader.error));
    reader.readAsDataURL(file);
  });
}

async function attach(files) {
  for (const file of files) {
    if (!/^image\/(png|jpeg|webp)$/.test(file.type)) announce(`${file.name} is no PNG, JPEG or WebP image.`);
    else if (file.size > MAX_IMAGE_BYTES) announce(`${file.name} is larger than 10 MB: attach a smaller one.`);
    else images.push({ name: file.name, url: URL.createObjectURL(file), data: await readImage(file) });
  }
  showImages();
}

function picture({ url, name }) {
  const image = new Image();
  image.src = url;
  image.alt = name;
  return element("li", "", image);
}

function showImages() {
  find("images").className = "images";
  find("images").replaceChildren(
    ...images.map((image) => {
      const item = picture(image);
      const remove = button("✕");
      remove.ariaLabel = `Remove ${image.name}`;
      remove.addEventListener("click", () => {
        images = images.filter((other) => other !== image);
        URL.revokeObjectURL(image.url);
        showImages();
        prompt.focus();
      });
      item.append(remove);
      return item;
    }),
  );
  show("images", images.length > 0);
}

// Messages

function fromTemplate(id) {
  return find(id).content.firstElementChild.cloneNode(true);
}

function addUser(text, attached) {
  const article = fromTemplate("user");
  article.querySelector(".text").textContent = text;
  article.querySelector(".images").replaceChildren(...attached.map(picture));
  article.querySelector(".images").hidden = !attached.length;
  log.append(article);
}

function send() {
  const text = prompt.value.trim();
  if (running || (!text && !images.length)) return;
  const parts = [...(text ? [{ type: "text", text }] : []), ...images.map(({ data }) => ({ type: "image_url", image_url: { url: data } }))];
  messages.push({ role: "user", content: images.length ? parts : text });
  addUser(text, images);
  images = [];
  showImages();
  prompt.value = "";
  fit();
  show("welcome", false);
  follows = true;
  answer();
}

async function answer() {
  const model = find("model").value;
  const body = { model, messages: [...messages], stream: true, stream_options: { include_usage: true } };
  for (const old of log.querySelectorAll(".again")) old.hidden = true;
  const view = new AnswerView(model, body);
  running = new AbortController();
  show("send", false);
  show("stop", true);
  const id = newRequestId();
  view.watch(id);
  try {
    for await (const event of streamChat(key, id, body, running.signal)) view.take(event);
    await view.end();
  } catch (error) {
    if (error.name === "AbortError") await view.end("stopped");
    else await view.fail(error);
  }
  running = null;
  show("stop", false);
  show("send", true);
  if (view.answer.text) messages.push({ role: "assistant", content: view.answer.text });
}

// One answer on the page, from the wait for its place to its numbers.
class AnswerView {
  constructor(model, body) {
    this.body = body;
    this.model = model;
    this.started = performance.now();
    this.first = null;
    this.parts = 0;
    this.tokens = null;
    this.note = "";
    this.queued = 0;
    this.article = fromTemplate("assistant");
    this.part = (name) => this.article.querySelector(name);
    this.part(".who").textContent = model;
    this.thoughts = this.part(".thoughts > div");
    this.answer = new Answer(this.part(".answer"), () => keepEnd());
    this.part(".as-curl").addEventListener("click", () => showCurl(this.body));
    this.part(".again").addEventListener("click", () => this.again());
    this.part(".copy-answer").addEventListener("click", (event) => copy(event.target, this.answer.text));
    log.append(this.article);
    this.clock = setInterval(() => this.tick(), 200);
    keepEnd();
  }

  get elapsed() {
    return (performance.now() - this.started) / 1000;
  }

  wait(text, place = null) {
    const what = this.part(".what");
    if (what.textContent !== text) {
      what.textContent = text;
      announce(text);
    }
    const squares = place && place.waiting <= SQUARES ? place.waiting : 0;
    this.part(".queue").replaceChildren(...Array.from({ length: squares }, (_, index) => element("i", index + 1 === place.position ? "me" : "")));
  }

  // Asks for the place in the queue until the answer begins.
  async watch(id) {
    const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
    await pause(POLL_AFTER);
    while (this.first === null && this.clock) {
      const place = await findPlace(key, id);
      if (this.first !== null || !this.clock) return;
      if (place?.state === "waiting") this.wait(`Place ${place.position} of ${place.waiting} in the queue`, place);
      else if (place?.state === "running") this.wait("The model reads your message");
      else if (place?.state === "blocked") this.wait("This browser has no connection left: stop an answer in another tab, or wait");
      await pause(1000);
    }
  }

  tick() {
    if (this.first === null) this.part(".seconds").textContent = `${this.elapsed.toFixed(1)} s`;
    else this.showNumbers();
  }

  take(event) {
    if (event.queueSeconds !== undefined) {
      this.queued = event.queueSeconds;
      if (event.fallback) this.part(".who").textContent = `${event.fallback}, in place of ${this.model}`;
    }
    if (event.text || event.thought) {
      this.last = performance.now();
      this.parts += 1;
      if (this.first === null) {
        this.first = this.last;
        this.part(".waiting").hidden = true;
        announce("The answer begins.");
      }
    }
    if (event.thought) {
      this.part(".thoughts").hidden = false;
      this.thoughts.append(event.thought);
    }
    if (event.text) this.answer.add(event.text);
    if (event.tokens !== undefined) this.tokens = event.tokens;
    if (event.finish === "length") this.note = "stopped at its limit of tokens";
  }

  showNumbers() {
    const numbers = [];
    const tokens = this.tokens ?? this.parts;
    if (this.queued >= 0.1) numbers.push(`queued ${seconds(this.queued)}`);
    if (this.first !== null) {
      numbers.push(`first token after ${seconds((this.first - this.started) / 1000)}`, `${tokens} tokens`);
      const spent = (this.last - this.first) / 1000;
      if (tokens > 1 && spent > 0) numbers.push(`${((tokens - 1) / spent).toFixed(1)} tokens/s`);
    }
    if (this.note) numbers.push(this.note);
    this.part(".meta").hidden = false;
    this.part(".meta p").textContent = numbers.join(" · ");
    this.part(".meta div").hidden = this.clock !== null;
  }

  async stopClock() {
    clearInterval(this.clock);
    this.clock = null;
    this.part(".waiting").hidden = true;
    await this.answer.end();
    this.part(".copy-answer").hidden = !this.answer.text;
  }

  async end(note) {
    if (note) this.note = note;
    await this.stopClock();
    if (this.first === null && !note) this.note = "an empty answer";
    this.showNumbers();
    announce(`The answer is complete. ${this.part(".meta p").textContent}`);
    keepEnd();
  }

  async fail(error) {
    await this.stopClock();
    this.showNumbers();
    this.part(".error").hidden = false;
    this.part(".error span").textContent = error.message;
    announce(error.message);
    if (error.status === 401) askForKey(error.message);
    if (error.retryAfter) this.countDown(Math.min(error.retryAfter, 3600));
    keepEnd();
  }

  countDown(left) {
    const again = this.part(".again");
    again.disabled = left > 0;
    again.textContent = left > 0 ? `Try again in ${left} s` : "Try again";
    if (left > 0) setTimeout(() => this.countDown(left - 1), 1000);
  }

  again() {
    if (running) return;
    if (messages.at(-1)?.role === "assistant") messages.pop();
    this.article.remove();
    follows = true;
    answer();
  }
}

// Copying

function copy(pressed, text) {
  const label = pressed.textContent;
  const tell = (word) => {
    pressed.textContent = word;
    announce(word);
    setTimeout(() => (pressed.textContent = label), 1500);
  };
  navigator.clipboard.writeText(text).then(() => tell("Copied"), () => tell("Not allowed"));
}

function showCurl(body) {
  find("curl-text").textContent = asCurl(body);
  show("curl-images", find("curl-text").textContent.includes(";base64,…"));
  find("curl").showModal();
}

// The page

function keepEnd() {
  if (follows) scrollTo(0, document.documentElement.scrollHeight);
}

function atEnd() {
  const page = document.documentElement;
  return page.scrollHeight - page.clientHeight - page.scrollTop < 60;
}

// For browsers without `field-sizing`.
function fit() {
  if (CSS.supports("field-sizing", "content")) return;
  prompt.style.height = "auto";
  prompt.style.height = `${prompt.scrollHeight}px`;
}

function startAnew() {
  running?.abort();
  messages = [];
  for (const image of log.querySelectorAll("img")) URL.revokeObjectURL(image.src);
  log.replaceChildren();
  show("welcome", true);
  show("down", false);
  announce("A new chat.");
  prompt.focus();
}

find("host").textContent = location.hostname;
find("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const typed = find("key-input").value.trim();
  if (typed) useKey(typed);
});
find("change").addEventListener("click", () => askForKey());
find("new").addEventListener("click", startAnew);
find("model").addEventListener("change", showModel);
find("stop").addEventListener("click", () => {
  running?.abort();
  prompt.focus();
});
find("attach").addEventListener("click", () => find("files").click());
find("files").addEventListener("change", (event) => {
  attach([...event.target.files]);
  event.target.value = "";
});
find("curl-close").addEventListener("click", () => find("curl").close());
find("down").addEventListener("click", () => {
  follows = true;
  keepEnd();
  prompt.focus();
});
composer.addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
prompt.addEventListener("input", fit);
prompt.addEventListener("keydown", (event) => {
  // On a phone the key Enter starts a line; while a character is composed it ends that.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || matchMedia("(pointer: coarse)").matches) return;
  event.preventDefault();
  send();
});
prompt.addEventListener("paste", (event) => {
  const files = [...event.clipboardData.files];
  if (!files.length || find("attach").hidden) return;
  event.preventDefault();
  attach(files);
});
composer.addEventListener("dragover", (event) => event.preventDefault());
composer.addEventListener("drop", (event) => {
  event.preventDefault();
  if (!find("attach").hidden) attach([...event.dataTransfer.files]);
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && running && !find("curl").open) running.abort();
});
document.addEventListener("click", (event) => {
  const pressed = event.target.closest("button");
  if (pressed?.dataset.copy) copy(pressed, find(pressed.dataset.copy).textContent);
  else if (pressed?.classList.contains("copy-block")) copy(pressed, pressed.closest(".block").querySelector("code").textContent);
  else if (pressed?.closest("#welcome")) {
    prompt.value = pressed.textContent;
    send();
  }
});
// Only a person scrolls up: the page itself grows, and goes down with it.
addEventListener("scroll", () => {
  const { scrollTop } = document.documentElement;
  if (atEnd()) follows = true;
  else if (scrollTop < lastTop) follows = false;
  lastTop = scrollTop;
  show("down", !follows && log.childElementCount > 0);
}, { passive: true });
new ResizeObserver(keepEnd).observe(log);

if (key) useKey(key);
else askForKey();
