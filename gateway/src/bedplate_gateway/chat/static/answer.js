// Shows an answer while it arrives: Markdown, sanitised, in pieces. A finished piece is rendered once. Only the last one, which
// still grows, is rendered again, and it has a bound. So an answer of any length and any content keeps the tab responsive.
"use strict";

const MAX_PIECE = 8000; // characters: a longer block is rendered in parts
const RENDER_SHARE = 8; // the next rendering waits this many times as long as the last one took
const MIN_WAIT = 50; // ms
const MAX_TASK = 40; // ms of rendering before the tab gets its turn

// Raw HTML is shown as text, and an image as a link, since loading it would tell a stranger what was asked.
const SANITISER = {
  RETURN_DOM_FRAGMENT: true,
  ALLOWED_TAGS: ["a", "blockquote", "br", "code", "del", "em", "h3", "hr", "li", "ol", "p", "pre", "strong", "table", "tbody", "td", "th", "thead", "tr", "ul"],
  ALLOWED_ATTR: ["class", "href", "start"],
  ALLOWED_URI_REGEXP: /^(?:https?:|mailto:)/i,
  ALLOW_ARIA_ATTR: false,
  ALLOW_DATA_ATTR: false,
};

const escapeHtml = (text) => text.replace(/[&<>"']/g, (sign) => `&#${sign.charCodeAt(0)};`);

const parser = new marked.Marked({
  gfm: true,
  renderer: {
    html: ({ text }) => escapeHtml(text),
    image: ({ href, text }) => `<a href="${escapeHtml(href)}">${escapeHtml(text || href)}</a>`,
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
    heading({ tokens, depth }) {
      // One level, so that no answer breaks the order of the page's headings.
      return `<h3 class="depth-${depth}">${this.parser.parseInline(tokens)}</h3>`;
    },
    code({ text, lang }) {
      const language = /^[\w+#.-]{1,24}/.exec(lang || "")?.[0] ?? "";
      return `<pre><code class="${language}">${escapeHtml(text)}</code></pre>`;
    },
  },
});

function element(name, className, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

function button(text, className = "") {
  const made = element("button", className, text);
  made.type = "button";
  return made;
}

// Blocks that scroll sideways take the focus, so that the keyboard can scroll them.
function furnish(fragment) {
  for (const link of fragment.querySelectorAll("a")) {
    link.target = "_blank";
    link.rel = "noopener noreferrer nofollow";
  }
  for (const table of fragment.querySelectorAll("table")) {
    const box = element("div", "table");
    box.tabIndex = 0;
    table.replaceWith(box);
    box.append(table);
  }
  for (const pre of fragment.querySelectorAll("pre")) {
    const box = element("div", "block", element("div", "bar", pre.firstElementChild?.className || "text", button("Copy", "copy-block")));
    pre.tabIndex = 0;
    pre.replaceWith(box);
    box.append(pre);
  }
  return fragment;
}

function renderMarkdown(text) {
  try {
    return furnish(DOMPurify.sanitize(parser.parse(text), SANITISER));
  } catch {
    // Nested deeper than the parser can follow.
    const plain = document.createDocumentFragment();
    plain.append(element("p", "", text));
    return plain;
  }
}

class Answer {
  constructor(target, onRender) {
    this.text = "";
    this.target = target;
    this.onRender = onRender;
    this.rest = "";
    this.tail = element("div", "tail");
    this.timer = null;
    this.ended = null;
  }

  add(text) {
    this.text += text;
    this.rest += text;
    this.timer ??= setTimeout(() => this.render(), this.wait ?? 0);
  }

  // Resolves when all of it is shown.
  end() {
    clearTimeout(this.timer);
    return new Promise((resolve) => {
      this.ended = resolve;
      this.render();
    });
  }

  render() {
    const started = performance.now();
    const spent = () => performance.now() - started;
    while (this.rest.length > MAX_PIECE && spent() < MAX_TASK) this.settlePart();
    if (this.rest.length > MAX_PIECE) {
      this.timer = setTimeout(() => this.render(), 0);
      return;
    }
    this.timer = null;
    if (this.ended) {
      this.finish();
      return;
    }
    this.settleFinished();
    this.tail.replaceChildren(renderMarkdown(this.rest));
    this.target.append(this.tail);
    this.onRender();
    this.wait = Math.max(MIN_WAIT, RENDER_SHARE * spent());
  }

  finish() {
    // A reference may be defined after its use, in another piece.
    const anew = this.text.length <= MAX_PIECE && /^ {0,3}\[[^\]]+\]:/m.test(this.text);
    if (anew) this.target.replaceChildren();
    this.settle(anew ? this.text : this.rest);
    this.tail.remove();
    this.onRender();
    this.ended();
  }

  settle(text) {
    if (!text.trim()) return;
    const piece = element("div", "piece");
    piece.append(renderMarkdown(text));
    if (this.tail.isConnected) this.tail.before(piece);
    else this.target.append(piece);
  }

  // Blocks that can no longer change: all before the last one that has text.
  settleFinished() {
    let tokens;
    try {
      tokens = parser.lexer(this.rest);
    } catch {
      return;
    }
    while (tokens.at(-1)?.type === "space") tokens.pop();
    const last = tokens.pop();
    if (!tokens.length || !last) return;
    const length = tokens.reduce((sum, token) => sum + token.raw.length, 0);
    // The parser replaces tabs and line ends in some of its raw texts.
    if (!this.rest.startsWith(tokens[0].raw) || !this.rest.startsWith(last.raw, length)) return;
    this.settle(this.rest.slice(0, length));
    this.rest = this.rest.slice(length);
  }

  settlePart() {
    const cut = this.rest.lastIndexOf("\n", MAX_PIECE) + 1 || MAX_PIECE;
    const part = this.rest.slice(0, cut);
    // In a code block the other part has to begin one again.
    const fences = [...part.matchAll(/^ {0,3}(`{3,}|~{3,})[^\n]*\n?/gm)];
    let open = null;
    for (const fence of fences) {
      if (!open) open = fence;
      else if (fence[0].trim().startsWith(open[1])) open = null;
    }
    this.settle(open ? `${part}\n${open[1]}` : part);
    this.rest = (open && open[0].endsWith("\n") ? open[0] : "") + this.rest.slice(cut);
  }
}
