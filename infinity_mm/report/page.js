"use strict";
// The gallery: sections, filters, cards, one dialog. Every word from the run becomes a text node; no markup is ever
// made from data (the page's policy forbids it as well).
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { rows, images, sections } = data;
  const at = (id) => document.getElementById(id);
  const STEP = 24;
  const state = { section: 0, shown: STEP, open: [], place: 0, opener: null };

  function el(tag, attrs, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attrs || {})) {
      if (value === null || value === undefined || value === false) continue;
      if (name === "class") node.className = value;
      else node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
    return node;
  }
  const words = (text, attrs) => el("bdi", { dir: "auto", ...attrs }, text);

  function picture(index, className) {
    const image = images[index];
    if (!image) return el("p", { class: "nopic" }, "no picture: it could not be read");
    const stored = image.thumb === null ? null : at(image.thumb);
    if (!stored) return el("p", { class: "nopic" }, `no picture: ${image.why}`);
    const img = el("img", {
      alt: `Picture ${image.sha.slice(0, 12)} from ${image.source}, ${image.width} × ${image.height} px`,
      class: className + (Math.max(image.width, image.height) < 200 ? " small" : ""),
      width: image.tw, height: image.th, decoding: "async",
    });
    img.src = "data:image/webp;base64," + stored.textContent;
    return img;
  }

  function answerOf(row) {
    if (!row.before) return words(row.answer, { class: "a" });
    const parts = row.before.diff.map(([kind, text]) =>
      kind === "=" ? text : el(kind === "-" ? "del" : "ins", {}, text));
    return el("bdi", { dir: "auto", class: "a" }, ...parts);
  }

  function score(row) {
    if (row.score === null) return null;
    const before = row.before && row.judgedNow ? row.before.score : null;
    return el("span", { class: "score", title: "what the judge gave, 1 to 10" },
      (before === null ? "" : `${before.toFixed(1)} → `) + row.score.toFixed(1) + (row.judgedNow ? "" : " before"));
  }

  const ended = (row) => row.reason ? `${row.stage}: ${row.reason}` : "";

  function sample(index) {
    const row = rows[index];
    const title = row.question || row.item || row.id;
    return el("li", { class: `sample ${row.fate}`, "data-row": index },
      el("button", { type: "button", class: "open", "data-row": index, "aria-haspopup": "dialog" }, words(title)),
      row.answer ? answerOf(row) : null,
      el("p", { class: "meta" },
        el("span", { class: `fate ${row.fate}` }, row.fate), score(row),
        ended(row) ? words(ended(row)) : null, row.style ? words(row.style) : null, row.type ? words(row.type) : null),
      row.detail && !row.answer ? el("p", { class: "detail" }, words(row.detail)) : null);
  }

  function card(item, keep) {
    const list = item.rows.filter(keep);
    if (!list.length) return null;
    const pics = item.images;
    return el("article", { class: pics.length > 1 ? "card pair" : "card" },
      el("div", { class: "pics" }, ...pics.map((index) => picture(index, "pic"))),
      item.note ? el("p", { class: "note" }, words(item.note)) : null,
      el("ul", {}, ...list.map(sample)));
  }

  const controls = ["type", "fate", "end", "script", "low", "high", "search"].map(at);
  function filter() {
    const [type, fate, end, script, low, high, search] = controls.map((control) => control.value);
    const wanted = search.trim().toLowerCase();
    return (index) => {
      const row = rows[index];
      if (type && row.type !== type) return false;
      if (fate && row.fate !== fate) return false;
      if (end && ended(row) !== end) return false;
      if (script && row.script !== script) return false;
      if (low && (row.score === null || row.score < Number(low))) return false;
      if (high && (row.score === null || row.score > Number(high))) return false;
      if (!wanted) return true;
      const image = images[row.image];
      return [row.id, row.question, row.answer, row.detail, row.item, row.reason, row.type,
        row.before ? row.before.answer : "", image ? image.sha + image.source + image.files.join(" ") : ""]
        .some((text) => text.toLowerCase().includes(wanted));
    };
  }

  function show() {
    const section = sections[state.section];
    const keep = filter();
    const matching = section.cards.filter((item) => item.rows.some(keep));
    const num = matching.reduce((sum, item) => sum + item.rows.filter(keep).length, 0);
    state.open = matching.flatMap((item) => item.rows.filter(keep));
    at("cards").replaceChildren(...matching.slice(0, state.shown).map((item) => card(item, keep)));
    at("about").textContent = section.about;
    at("count").textContent = num === 0 ? "Nothing here matches." :
      `${num} of ${section.rows} shown in this section` + (matching.length > state.shown ? `, the first ${state.shown} cards below` : "");
    const rest = matching.length - state.shown;
    at("more").hidden = rest <= 0;
    at("more").textContent = `Show ${Math.min(STEP, rest)} more of ${rest}`;
  }

  function select(index, focus) {
    state.section = index;
    state.shown = STEP;
    [...at("tabs").children].forEach((tab, place) => {
      tab.setAttribute("aria-selected", place === index);
      tab.tabIndex = place === index ? 0 : -1;
      if (place === index) { at("panel").setAttribute("aria-labelledby", tab.id); if (focus) tab.focus(); }
    });
    show();
  }

  function pairs(list) {
    return el("dl", {}, ...list.filter(([, value]) => value).flatMap(([name, value]) =>
      [el("dt", {}, name), el("dd", {}, typeof value === "string" ? words(value) : value)]));
  }

  function openRow(index, opener) {
    state.place = Math.max(0, state.open.indexOf(index));
    if (opener) state.opener = opener;
    const row = rows[index];
    const image = images[row.image];
    const siblings = row.image < 0 ? [] : rows.map((other, place) => [other, place])
      .filter(([other, place]) => other.image === row.image && place !== index);
    const calls = row.calls.length ? el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Model calls" },
      el("table", {}, el("thead", {}, el("tr", {}, ...["part", "model", "prompt", "temperature", "seed", "journal key"]
        .map((name) => el("th", { scope: "col" }, name)))),
      el("tbody", {}, ...row.calls.map((call) => el("tr", {}, ...call.map((cell) => el("td", {}, words(String(cell))))))))) : null;
    at("shown").replaceChildren(
      el("div", { class: "big" }, picture(row.image, "pic")),
      el("div", { class: "facts" },
        el("h2", { id: "shown-title", tabindex: -1 }, words(row.question || row.item || row.id)),
        row.answer ? el("p", {}, answerOf(row)) : null,
        row.before ? el("p", { class: "legend" }, el("del", {}, "taken out"), " ", el("ins", {}, "put in"),
          ` by the rewriter, in ${row.before.rounds} round(s)`) : null,
        el("p", { class: "meta" }, el("span", { class: `fate ${row.fate}` }, row.fate), score(row),
          ended(row) ? words(ended(row)) : null),
        row.detail ? el("p", { class: "detail" }, words(row.detail)) : null,
        pairs([
          ["Instruction type", row.type], ["Answer style", row.style],
          ["First answer", row.before ? row.before.answer : ""],
          ["Judge", row.judged], ["What became of it", row.went],
          ["Example questions shown", row.examples.join("  |  ")], ["Script (a guess)", row.script],
          ["Sample", row.id], ["Pass", row.pass],
        ]),
        image ? el("h3", {}, "The picture") : null,
        image ? pairs([
          ["Source", image.source], ["Licence", image.licence],
          ["File", image.files.join("  |  ")], ["Size", `${image.width} × ${image.height} px`],
          ["Tags with scores", image.tags.map(([name, value]) => `${name} ${value}`).join(", ")],
          ["SHA-256", image.sha],
          ["More pictures", row.numImages > 1 ? `this sample has ${row.numImages}, the first is shown` : ""],
        ]) : null,
        siblings.length ? el("h3", {}, "Also made of this picture, on this page") : null,
        siblings.length ? el("ul", { class: "siblings" }, ...siblings.slice(0, 40).map(([other, place]) =>
          el("li", {}, el("button", { type: "button", class: "sibling", "data-row": place },
            el("span", { class: `fate ${other.fate}` }, other.fate), " ", words(other.question || other.id))))) : null),
      calls ? el("div", { class: "calls" }, el("h3", {}, "Made by"), calls) : "");
    const dialog = at("dialog");
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
    at("shown-title").focus();
    at("place").textContent = state.open.includes(index) ? `${state.place + 1} of ${state.open.length}` : "";
  }

  const turn = (by) => {
    if (!state.open.length) return;
    openRow(state.open[(state.place + by + state.open.length) % state.open.length]);
  };

  sections.forEach((section, index) => {
    const tab = el("button", { type: "button", role: "tab", id: `tab${index}`, "aria-controls": "panel" },
      section.label, el("span", { class: "n" }, String(section.rows)));
    tab.addEventListener("click", () => select(index, false));
    at("tabs").append(tab);
  });
  at("tabs").addEventListener("keydown", (event) => {
    const last = sections.length - 1;
    const to = { ArrowRight: state.section + 1, ArrowLeft: state.section - 1, Home: 0, End: last }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    select((to + sections.length) % sections.length, true);
  });
  controls.forEach((control) => control.addEventListener("input", () => { state.shown = STEP; show(); }));
  at("filters").addEventListener("reset", () => setTimeout(() => { state.shown = STEP; show(); }));
  at("filters").addEventListener("submit", (event) => event.preventDefault());
  at("more").addEventListener("click", () => {
    const before = at("cards").children.length;
    state.shown += STEP;
    show();
    const first = at("cards").children[before];
    if (first) first.querySelector(".open").focus();
  });
  at("cards").addEventListener("click", (event) => {
    const holder = event.target.closest("[data-row]");
    if (!holder || String(getSelection())) return;
    openRow(Number(holder.dataset.row), holder.matches("button") ? holder : holder.querySelector(".open"));
  });
  at("cards").addEventListener("keydown", (event) => {
    const by = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
    if (!by || !event.target.matches(".open")) return;
    const all = [...at("cards").querySelectorAll(".open")];
    const next = all[all.indexOf(event.target) + by];
    if (next) { event.preventDefault(); next.focus(); }
  });
  at("dialog").addEventListener("click", (event) => {
    const sibling = event.target.closest(".sibling");
    if (sibling) openRow(Number(sibling.dataset.row));
    else if (event.target === at("dialog")) at("dialog").close();
  });
  at("dialog").addEventListener("keydown", (event) => {
    if (event.target.closest(".scroll")) return;
    if (event.key === "ArrowRight") { event.preventDefault(); turn(1); }
    if (event.key === "ArrowLeft") { event.preventDefault(); turn(-1); }
  });
  at("dialog").addEventListener("close", () => { if (state.opener && state.opener.isConnected) state.opener.focus(); });
  at("close").addEventListener("click", () => at("dialog").close());
  at("next").addEventListener("click", () => turn(1));
  at("previous").addEventListener("click", () => turn(-1));
  document.querySelectorAll("button.reason").forEach((button) => button.addEventListener("click", () => {
    at("filters").reset();
    const name = button.dataset.end;
    const found = sections.findIndex((section) =>
      section.cards.some((item) => item.rows.some((index) => ended(rows[index]) === name)));
    if (found >= 0) { at("end").value = name; select(found, true); }
    at("gallery").scrollIntoView();
  }));
  at("gallery").hidden = false;
  select(0, false);
})();
