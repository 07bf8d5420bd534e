// The labelling page. What the server has acknowledged is in `saved`, what is still on its way in
// `queue`: changes are sent one by one in the order they were made, and stay queued until the
// server has said that they are on its disk. A label that is still on its way looks different.
"use strict";

const DOMAINS = ["natural", "rendition", "ambiguous"];
const LETTERS = { natural: "N", rendition: "R", ambiguous: "A" };
const IDLE = 30_000; // ms: a longer pause does not count into labels per minute
const EXAMPLES = 6;
const TINY = 160; // pixels a side: below, images are enlarged with crisp pixels

const $ = (id) => document.getElementById(id);
const make = (tag, className = "", text = "") => {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  return element;
};

let state = null; // as /api/state tells it
let saved = []; // per position: the domain that is on the server's disk, or null
let recent = []; // positions in the order they were saved, latest last: the rubric's examples
let current = 0; // position of the image that the keys mean
let size = 5; // images a side
let columns = 5;
let brush = "cycle";

// --- saving ---------------------------------------------------------------------------------

const queue = []; // {kind: "label", position, domain} | {kind: "undo"} | {kind: "reload"}
let sending = false;
let stopped = false; // the server refused for good: only loading the page again helps
const times = []; // when labels were acknowledged

/** What the page shows at a position: the last change on its way, else what is saved. */
function shown(position) {
  for (let i = queue.length - 1; i >= 0; i--) {
    if (queue[i].kind === "label" && queue[i].position === position) return queue[i].domain;
  }
  return saved[position];
}

const isPending = (position) => queue.some((c) => c.kind === "label" && c.position === position);

async function request(path, fields) {
  const options = { signal: AbortSignal.timeout(15_000) };
  if (fields) {
    const identity = { draw: state.draw, annotator: state.annotator };
    options.method = "POST";
    options.headers = { "Content-Type": "application/json" };
    options.body = JSON.stringify({ ...identity, ...fields });
  }
  const response = await fetch(path, options);
  const answer = await response.json();
  if (!response.ok) {
    const error = new Error(answer.error);
    error.final = response.status < 500;
    throw error;
  }
  return answer;
}

function enqueue(change) {
  queue.push(change);
  if (!sending) send();
}

async function send() {
  sending = true;
  let delay = 250;
  while (queue.length && !stopped) {
    tellSaving();
    const change = queue[0];
    try {
      await perform(change);
      queue.shift();
      delay = 250;
      trouble("");
      if (change.position !== undefined) paint(change.position);
    } catch (error) {
      if (change.kind === "undo" && !error.final) {
        // It may have been done before the connection broke: ask what holds instead of repeating.
        queue[0] = { kind: "reload" };
      }
      if (error.final) {
        stopped = true;
        trouble(`NOT SAVED: ${unsaved()}. The server refuses: ${error.message}. Note what is ` +
          "marked with … and load this page again.");
        break;
      }
      trouble(`NOT SAVED: ${unsaved()}. The server does not answer (${error.message}); ` +
        "trying again. Keep this page open.");
      await new Promise((resolve) => setTimeout(resolve, delay));
      delay = Math.min(2 * delay, 4000);
    }
  }
  sending = false;
  tellSaving();
}

function unsaved() {
  const count = queue.filter((change) => change.kind === "label").length;
  return count === 1 ? "1 label" : `${count} labels`;
}

async function perform(change) {
  if (change.kind === "label") {
    const answer = await request("/api/label", { position: change.position, domain: change.domain });
    keep(answer.position, answer.domain);
    if (answer.domain) times.push(Date.now());
  } else if (change.kind === "undo") {
    const answer = await request("/api/undo", {});
    if (answer.position === null) return say("nothing to undo");
    keep(answer.position, answer.domain);
    times.pop();
    paint(answer.position);
    goTo(answer.position);
  } else {
    const answer = await request("/api/state");
    if (answer.draw !== state.draw) {
      const error = new Error("it now serves another draw");
      error.final = true;
      throw error;
    }
    take(answer);
    draw();
  }
  tellProgress();
}

function keep(position, domain) {
  saved[position] = domain;
  recent = recent.filter((p) => p !== position);
  if (domain) recent.push(position);
}

function take(answer) {
  state = answer;
  const letters = Object.fromEntries(DOMAINS.map((domain) => [LETTERS[domain], domain]));
  saved = [...answer.labels].map((letter) => letters[letter] ?? null);
  recent = saved.flatMap((domain, position) => (domain ? [position] : []));
}

window.addEventListener("beforeunload", (event) => {
  if (queue.some((change) => change.kind === "label")) event.preventDefault();
});

// --- what is told ---------------------------------------------------------------------------

function trouble(text) {
  $("trouble").hidden = !text;
  if ($("trouble").textContent !== text) $("trouble").textContent = text;
  placeTrouble();
}

/** An open dialog hides the rest of the page; trouble must be seen there too. */
function placeTrouble() {
  const place = document.querySelector("dialog[open]") ?? document.body;
  if ($("trouble").parentElement !== place) place.prepend($("trouble"));
}

let sayUntil = 0;
function say(text) {
  $("saving").textContent = text;
  sayUntil = Date.now() + 1500;
  setTimeout(tellSaving, 1600);
}

function tellSaving() {
  if (Date.now() < sayUntil && !queue.length) return;
  const text = queue.length ? `saving ${queue.length} …` : "all saved";
  $("saving").textContent = text;
  $("saving").dataset.pending = queue.length;
}

function tellProgress() {
  const done = saved.filter(Boolean).length;
  $("bar").max = Math.max(saved.length, 1);
  $("bar").value = done;
  $("count").textContent = `${done} of ${saved.length} done`;
  let active = 0;
  for (let i = 1; i < times.length; i++) {
    const gap = times[i] - times[i - 1];
    if (gap < IDLE) active += gap;
  }
  const rate = times.length > 4 && active ? Math.round((times.length - 1) / (active / 60_000)) : null;
  $("rate").textContent = rate === null ? "" : `${rate} a minute`;
}

// --- the grid -------------------------------------------------------------------------------

const perPage = () => size * size;
const firstOfPage = () => Math.floor(current / perPage()) * perPage();
const address = (position) => `/image/${state.draw}/${position}`;
const tileOf = (position) => document.querySelector(`.tile[data-position="${position}"]`);

function letterOf(domain) {
  return make("b", `letter ${domain}`, LETTERS[domain]);
}

function picture(position, image) {
  image.alt = "";
  image.draggable = false;
  image.addEventListener("load", () => {
    const tiny = Math.max(image.naturalWidth, image.naturalHeight) < TINY;
    image.classList.toggle("tiny", tiny);
  });
  image.src = address(position);
  return image;
}

function draw() {
  const grid = $("grid");
  const first = firstOfPage();
  const last = Math.min(first + perPage(), saved.length);
  columns = window.innerWidth <= 600 ? Math.min(size, 3) : size;
  grid.style.setProperty("--columns", columns);
  grid.replaceChildren();
  for (let position = first; position < last; position++) grid.append(makeTile(position));
  grid.classList.toggle("narrow", grid.clientWidth / columns < 120);
  $("page").textContent = `page ${first / perPage() + 1} of ${Math.ceil(saved.length / perPage())}`;
  for (let position = last; position < Math.min(last + perPage(), saved.length); position++) {
    new Image().src = address(position); // the next page is there before it is asked for
  }
  focusOn(current);
  tellProgress();
}

function makeTile(position) {
  const tile = make("button", "tile");
  tile.type = "button";
  tile.dataset.position = position;
  const image = picture(position, make("img"));
  // What has not been seen cannot be labelled; what cannot be shown has said so.
  image.addEventListener("load", () => { tile.dataset.seen = "yes"; });
  image.addEventListener("error", () => {
    image.remove();
    tile.dataset.seen = "never";
    tile.append(make("span", "note", "cannot be shown"));
  });
  tile.append(image);
  if (state.votes) tile.append(votesOf(position));
  tile.addEventListener("click", () => clicked(position));
  tile.addEventListener("focus", () => mark(position));
  dress(tile, position);
  return tile;
}

function votesOf(position) {
  const list = make("div", "votes");
  for (const [name, domain] of Object.entries(state.votes[position])) {
    const vote = make("span");
    vote.append(letterOf(domain), name);
    list.append(vote);
  }
  return list;
}

/** Puts a position's label on its tile. */
function dress(tile, position) {
  const domain = shown(position);
  const pending = isPending(position);
  tile.classList.remove(...DOMAINS);
  tile.classList.toggle("pending", pending);
  tile.querySelector(":scope > .letter")?.remove();
  if (domain) {
    tile.classList.add(domain);
    tile.append(letterOf(domain));
  }
  const votes = state.votes ? Object.entries(state.votes[position]).map((v) => v.join(": ")) : [];
  const words = [`Image ${position + 1}`, ...votes, domain ?? "no label"];
  if (pending) words.push("not saved yet");
  tile.setAttribute("aria-label", words.join(", "));
}

function paint(position) {
  const tile = tileOf(position);
  if (tile) dress(tile, position);
  if ($("zoom").open && position === current) drawZoom();
}

function mark(position) {
  current = position;
  for (const tile of document.querySelectorAll(".tile.current")) tile.classList.remove("current");
  tileOf(position)?.classList.add("current");
}

function focusOn(position) {
  mark(position);
  if (!document.querySelector("dialog[open]")) tileOf(position)?.focus();
}

function goTo(position) {
  if (!saved.length) return;
  const before = firstOfPage();
  current = Math.max(0, Math.min(position, saved.length - 1));
  if (firstOfPage() !== before || !tileOf(current)) draw();
  else focusOn(current);
  if ($("zoom").open) drawZoom();
}

function turn(pages) {
  const first = firstOfPage() + pages * perPage();
  if (first >= 0 && first < saved.length) goTo(first);
}

function jump() {
  const position = saved.findIndex((_, p) => !shown(p));
  if (position < 0) say("all done");
  else goTo(position);
}

// --- labelling ------------------------------------------------------------------------------

function setLabel(position, domain) {
  if (stopped || shown(position) === domain) return !stopped;
  if (domain && !tileOf(position)?.dataset.seen) {
    say("image still loading");
    return false;
  }
  queue.push({ kind: "label", position, domain });
  paint(position);
  tellSaving();
  if (!sending) send();
  return true;
}

function clicked(position) {
  const order = [null, ...DOMAINS];
  if (brush === "zoom") return openZoom();
  if (brush === "clear") return setLabel(position, null);
  if (brush !== "cycle") return setLabel(position, brush);
  return setLabel(position, order[(order.indexOf(shown(position)) + 1) % order.length]);
}

function setAndMoveOn(domain) {
  if (saved.length && setLabel(current, domain)) goTo(current + 1);
}

// --- zoom and rubric ------------------------------------------------------------------------

function openDialog(dialog) {
  // A dialog that closes gives the focus back; to a tile, that would undo what n and p did.
  document.activeElement?.blur();
  dialog.showModal();
  placeTrouble();
}

function openZoom() {
  if (!saved.length) return;
  openDialog($("zoom"));
  drawZoom();
}

function drawZoom() {
  const image = $("large");
  if (image.getAttribute("src") !== address(current)) picture(current, image);
  const domain = shown(current);
  $("which").replaceChildren(`Image ${current + 1} of ${saved.length}: `);
  $("which").append(domain ? letterOf(domain) : "no label", domain ? ` ${domain}` : "");
  if (isPending(current)) $("which").append(" …");
  $("said").textContent = state.votes
    ? Object.entries(state.votes[current]).map(([name, said]) => `${name}: ${said}`).join(", ")
    : "";
}

function openHelp() {
  for (const box of document.querySelectorAll(".examples")) {
    const own = recent.filter((p) => saved[p] === box.dataset.domain).slice(-EXAMPLES).reverse();
    box.replaceChildren(...own.map((position) => {
      const image = picture(position, make("img"));
      image.alt = `image ${position + 1}, ${box.dataset.domain}`;
      return image;
    }));
    if (!own.length) box.textContent = "None labelled so yet; your own labels will show here.";
  }
  openDialog($("help"));
}

const closeAll = () => document.querySelectorAll("dialog[open]").forEach((d) => d.close());

for (const dialog of document.querySelectorAll("dialog")) {
  dialog.addEventListener("close", () => {
    placeTrouble();
    focusOn(current);
  });
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
}

// --- keys and buttons -----------------------------------------------------------------------

const acts = {
  help: openHelp,
  close: closeAll,
  back: () => turn(-1),
  next: () => turn(1),
  previous: () => goTo(current - 1),
  following: () => goTo(current + 1),
  undo: () => enqueue({ kind: "undo" }),
  jump,
  zoom: () => ($("zoom").open ? closeAll() : openZoom()),
};

const keys = {
  1: () => setAndMoveOn("natural"),
  2: () => setAndMoveOn("rendition"),
  3: () => setAndMoveOn("ambiguous"),
  0: () => setLabel(current, null),
  Backspace: () => setLabel(current, null),
  ArrowLeft: acts.back,
  ArrowRight: acts.next,
  n: acts.following,
  p: acts.previous,
  u: acts.undo,
  z: acts.zoom,
  g: acts.jump,
  "?": acts.help,
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || !state) return;
  if (event.target instanceof HTMLSelectElement) return;
  if ($("help").open) {
    if (event.key === "?") closeAll();
    return;
  }
  const act = Object.hasOwn(keys, event.key) ? keys[event.key] : undefined;
  if (!act) return;
  event.preventDefault();
  // A key held down must not label a page of images that nobody looked at.
  if (!event.repeat || ["n", "p", "ArrowLeft", "ArrowRight"].includes(event.key)) act();
});

document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button || !state) return;
  if (button.dataset.act) acts[button.dataset.act]();
  if (button.dataset.set !== undefined) {
    if (button.dataset.set) setAndMoveOn(button.dataset.set);
    else setLabel(current, null);
  }
  if (button.dataset.brush) {
    brush = button.dataset.brush;
    for (const other of document.querySelectorAll(".brush")) {
      other.setAttribute("aria-pressed", other === button);
    }
  }
});

$("size").addEventListener("change", () => {
  size = Number($("size").value);
  draw();
});

window.addEventListener("resize", () => {
  const fitting = window.innerWidth <= 600 ? Math.min(size, 3) : size;
  if (state && fitting !== columns) draw();
});

async function start() {
  try {
    take(await request("/api/state"));
  } catch (error) {
    trouble(`The labels cannot be loaded: ${error.message}. Load this page again.`);
    return;
  }
  trouble("");
  // A few images are shown larger.
  size = Math.min(state.grid, Math.max(3, Math.ceil(Math.sqrt(saved.length))));
  const sizes = [...new Set([1, 2, 3, 4, 5, 6, 8, 10, size])].sort((a, b) => a - b);
  for (const side of sizes) $("size").append(new Option(`${side} × ${side}`, side));
  $("size").value = size;
  $("title").textContent = state.adjudicate ? "Decide where labels differ" : "Natural or rendition?";
  $("who").textContent = `${state.annotator}, ${state.dataset}, ${state.order}`;
  document.title = `${state.annotator}: ${$("title").textContent}`;
  draw();
  if (saved.some((domain) => !domain)) jump();
  tellSaving();
}

start();
