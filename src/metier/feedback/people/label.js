/* The labelling page. A decision is kept in this browser from the moment it is made until the server
   says that it is in the ledger; until then it is sent again and again, under the same click. What is
   unfinished is kept here at once and on the server a moment later. */
(() => {
  "use strict";
  const root = document.documentElement;
  const { base, token, kind, part, store } = root.dataset;
  const find = (id) => document.getElementById(id);
  const main = find("item"), banner = find("banner"), told = find("told");
  const LOOK_AGAIN = 15000, DRAFT_WAIT = 1200, RENEW = 300000;

  const kept = (name) => { try { return JSON.parse(localStorage.getItem(`${store} ${name}`)); } catch { return null; } };
  const keep = (name, value) => { try { localStorage.setItem(`${store} ${name}`, JSON.stringify(value)); } catch { /* full or forbidden: the page itself still holds it */ } };
  const drop = (name) => { try { localStorage.removeItem(`${store} ${name}`); } catch { /* likewise */ } };

  let view = null;      // what the server last said
  let state = {};       // what is unfinished: the note, and by kind text, order, labels or marks
  let pending = kept("pending");
  let sending = false, loading = false;
  let draftTimer = 0, lookTimer = 0;
  let current = null;   // marks: the turn that a label goes to

  // --- the server ---------------------------------------------------------------------

  const call = async (path, body) => {
    const options = { headers: { accept: "application/json" }, signal: AbortSignal.timeout(20000) };
    if (body !== undefined) {
      options.method = "POST";
      options.body = JSON.stringify(body);
      Object.assign(options.headers, { "content-type": "application/json", "x-metier-token": token });
    }
    const answer = await fetch(base + path, options);
    const data = await answer.json().catch(() => ({}));
    if (!answer.ok) throw Object.assign(new Error(data.error || `the server said ${answer.status}`), { status: answer.status });
    return data;
  };
  const passing = (error) => !error.status || error.status === 429 || error.status >= 500;
  const reason = (error) => (error.status ? error.message : "the server does not answer");
  const pause = (seconds) => new Promise((go) => { setTimeout(go, seconds * 1000); });
  const alarm = (text) => { banner.textContent = text; banner.hidden = !text; };
  const say = (text) => { const line = find("state"); if (line) line.textContent = text; };

  const click = () => [...crypto.getRandomValues(new Uint8Array(12))].map((byte) => byte.toString(16).padStart(2, "0")).join("");

  const send = async () => {
    if (sending) return;
    sending = true;
    main.setAttribute("aria-busy", "true");
    for (let wait = 0.5; pending; wait = Math.min(2 * wait, 8)) {
      let done;
      try {
        done = await call(pending.path, pending.body);
      } catch (error) {
        if (!passing(error)) {
          alarm(`Not saved: ${reason(error)}.`);
          if (error.status !== 401 && error.status !== 403) { pending = null; drop("pending"); await load(); alarm(`Not saved: ${reason(error)}.`); }
          break;
        }
        alarm(`Not saved yet: ${reason(error)}. Your answer is kept in this browser and sent again until it is saved.`);
        await pause(wait);
        continue;
      }
      pending = null;
      drop("pending");
      alarm("");
      if (done.view) show(done.view, true);
      else await load();
    }
    main.removeAttribute("aria-busy");
    sending = false;
  };

  const decide = (path, more) => {
    if (pending || sending || loading) return;
    clearTimeout(draftTimer);
    drop("draft");
    pending = { path, body: { click: click(), ...more } };
    keep("pending", pending);
    say("Saving …");
    send();
  };
  const answer = (value) => decide("/answer", { item: view.item, answer: value, note: state.note || "", seconds: watched() });

  const load = async () => {
    if (loading) return;
    loading = true;
    for (let wait = 0.5; ; wait = Math.min(2 * wait, 8)) {
      let next;
      try {
        next = await call("/item");
      } catch (error) {
        alarm(`${passing(error) ? "Trying again" : "This page cannot go on"}: ${reason(error)}.`);
        if (!passing(error)) { loading = false; return; }
        await pause(wait);
        continue;
      }
      loading = false;
      alarm("");
      show(next, view !== null);
      return;
    }
  };

  // --- drafts -------------------------------------------------------------------------

  const changed = () => {
    if (!view || !view.item) return;
    keep("draft", { item: view.item, body: state });
    clearTimeout(draftTimer);
    draftTimer = setTimeout(saveDraft, DRAFT_WAIT);
  };
  const saveDraft = async () => {
    if (pending || !view || !view.item) return;
    const item = view.item;
    try {
      await call("/draft", { item, body: state });
      if (view.item === item) say("Draft saved");
      if (!pending) alarm("");
    } catch (error) {
      if (!passing(error) || view.item !== item) return;
      alarm(`The draft is kept in this browser only: ${reason(error)}. Trying again.`);
      draftTimer = setTimeout(saveDraft, 3000);
    }
  };

  // --- time on the item, while it can be seen -----------------------------------------

  let since = 0, before = 0;
  const watch = () => { before = 0; since = document.hidden ? 0 : performance.now(); };
  const watched = () => Math.round(before + (since ? performance.now() - since : 0)) / 1000;
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) { before += since ? performance.now() - since : 0; since = 0; } else since = performance.now();
  });

  // --- the screen ---------------------------------------------------------------------

  const show = (next, moved) => {
    view = next;
    clearTimeout(lookTimer);
    main.innerHTML = view.html;
    main.normalize();
    main.dataset.item = view.item || "";
    const total = view.done + view.left;
    find("count").textContent = view.item || view.done ? `${view.done} done, ${view.left} left` : "";
    find("far").style.width = total ? `${100 * view.done / total}%` : "0";
    find("undo").disabled = !view.undo;
    const local = kept("draft");
    const draft = local && local.item === view.item ? local.body : view.draft;
    if (local && local.item !== view.item) drop("draft");
    state = draft || { note: "", ...(view.answer || {}) };
    current = null;
    if (view.item) begin();
    if (view.answer && !draft) pressed(view.answer);
    if (moved) {
      window.scrollTo(0, 0);
      find("ask").focus({ preventScroll: true });
      say("Saved");
      told.textContent = `Saved. ${view.item ? `${view.left} left.` : "Nothing is left."}`;
    }
    if (!view.item) lookTimer = setTimeout(load, LOOK_AGAIN);
    watch();
  };

  const pressed = (value) => {
    for (const button of main.querySelectorAll("[data-answer]")) {
      button.classList.toggle("had", button.dataset.answer === JSON.stringify(value).replace(":", ": "));
    }
    if (value.labels) for (const button of main.querySelectorAll("[data-label]")) button.classList.toggle("had", value.labels.includes(button.dataset.label));
  };

  const begin = () => {
    const note = find("note");
    note.value = state.note || "";
    noting(Boolean(state.note));
    note.addEventListener("input", () => { state.note = note.value; changed(); });
    if (!main.querySelector(".choices button")) return; // nothing is left to judge: it can only be skipped
    if (kind === "edit") beginEdit();
    if (kind === "ranking") { state.order = state.order || []; drawRanking(); }
    if (kind === "labels" && find("finish")) { state.labels = state.labels || []; drawLabels(); }
    if (kind === "marks") {
      state.marks = state.marks || [];
      const turns = [...main.querySelectorAll("[data-turn]")];
      const assistant = turns.filter((turn) => turn.classList.contains("assistant"));
      pick((assistant.length ? assistant : turns).at(-1));
      drawMarks();
    }
  };
  const noting = (open) => { find("noted").hidden = !open; find("note-open").setAttribute("aria-expanded", String(open)); };

  // --- edits, rankings, labels, marks -------------------------------------------------

  const beginEdit = () => {
    const text = find("text");
    if (!text) return;
    const original = text.value;
    if (state.text !== undefined) text.value = state.text;
    const fit = () => {
      text.style.height = "auto";
      text.style.height = `${Math.min(text.scrollHeight + 4, 0.6 * window.innerHeight)}px`;
      find("finish").firstChild.textContent = text.value === original ? "Good as it is " : "Keep this answer ";
      find("finish").disabled = !text.value.trim();
    };
    text.addEventListener("input", () => { state.text = text.value; fit(); changed(); });
    fit();
  };

  const drawRanking = () => {
    for (const card of main.querySelectorAll(".answer")) {
      const rank = state.order.indexOf(Number(card.dataset.place));
      const mark = card.querySelector(".rank");
      mark.hidden = rank < 0;
      mark.textContent = rank < 0 ? "" : rank === 0 ? "best" : `${rank + 1}.`;
      card.classList.toggle("chosen", rank >= 0);
    }
    const buttons = [...main.querySelectorAll("[data-rank]")];
    for (const button of buttons) {
      const taken = state.order.includes(Number(button.dataset.rank));
      button.setAttribute("aria-pressed", String(taken));
    }
    find("back").disabled = !state.order.length;
    find("finish").disabled = state.order.length < buttons.length;
  };
  const rank = (place) => {
    if (state.order.includes(place)) return;
    state.order = [...state.order, place];
    const all = [...main.querySelectorAll("[data-rank]")].map((button) => Number(button.dataset.rank));
    const rest = all.filter((one) => !state.order.includes(one));
    if (rest.length === 1) state.order = [...state.order, ...rest];
    drawRanking();
    changed();
    told.textContent = `Order: ${state.order.map((one) => "ABCDEFGHI"[one]).join(", ")}`;
  };

  const drawLabels = () => {
    for (const button of main.querySelectorAll("[data-label]")) button.setAttribute("aria-pressed", String(state.labels.includes(button.dataset.label)));
    find("finish").disabled = !state.labels.length;
  };

  const pick = (turn) => {
    if (!turn) return;
    if (current) current.classList.remove("current");
    current = turn;
    current.classList.add("current");
  };
  const points = (text) => [...text].length; // places count characters as Python does
  const selected = () => {
    const chosen = window.getSelection();
    if (part !== "span" || !chosen.rangeCount || chosen.isCollapsed) return null;
    const range = chosen.getRangeAt(0);
    const said = range.startContainer.parentElement && range.startContainer.parentElement.closest("[data-text]");
    if (!said || !main.contains(said)) return null;
    const text = said.firstChild;
    if (range.startContainer !== text) return null;
    const end = range.endContainer === text ? range.endOffset : text.length;
    const start = points(text.data.slice(0, range.startOffset));
    return { turn: Number(said.closest("[data-turn]").dataset.turn), start, end: start + points(text.data.slice(range.startOffset, end)) };
  };
  const mark = (label) => {
    const words = selected();
    if (!words && !current) return;
    const made = words ? { ...words, label } : { turn: Number(current.dataset.turn), label };
    const same = (one) => one.turn === made.turn && one.label === label && one.start === made.start && one.end === made.end;
    state.marks = state.marks.some(same) ? state.marks.filter((one) => !same(one)) : [...state.marks, made];
    if (words) window.getSelection().removeAllRanges();
    drawMarks();
    changed();
    told.textContent = state.marks.some(same) ? `Marked: ${label}` : `No longer marked: ${label}`;
  };
  const place = (text, count) => [...text].slice(0, count).join("").length;
  const drawMarks = () => {
    main.querySelectorAll(".marked").forEach((list) => list.remove());
    const ranges = [];
    for (const turn of main.querySelectorAll("[data-turn]")) {
      const mine = state.marks.filter((one) => one.turn === Number(turn.dataset.turn));
      if (!mine.length) continue;
      const list = document.createElement("p");
      list.className = "marked";
      for (const one of mine) {
        const chip = document.createElement("button");
        chip.type = "button";
        chip.className = "chip";
        const said = turn.querySelector("[data-text]");
        let words = "";
        if (one.start !== undefined && one.start !== null && said) {
          const text = said.firstChild, from = place(text.data, one.start), to = place(text.data, one.end);
          const range = new Range();
          range.setStart(text, from);
          range.setEnd(text, to);
          ranges.push(range);
          words = `: “${text.data.slice(from, to).slice(0, 60)}”`;
        }
        chip.textContent = `${one.label}${words} ×`;
        chip.setAttribute("aria-label", `Remove the mark ${one.label}${words}`);
        chip.addEventListener("click", () => { state.marks = state.marks.filter((other) => other !== one); drawMarks(); changed(); });
        list.append(chip);
      }
      turn.append(list);
    }
    if (window.CSS && CSS.highlights) CSS.highlights.set("marked", new Highlight(...ranges));
    find("finish").firstChild.textContent = state.marks.length ? "Done " : "Nothing to mark ";
  };

  const finish = () => {
    if (kind === "edit") answer({ text: find("text").value });
    if (kind === "ranking") answer({ order: state.order });
    if (kind === "labels") answer({ labels: state.labels });
    if (kind === "marks") answer({ marks: state.marks });
  };

  // --- what a person does -------------------------------------------------------------

  const skip = (why) => { if (why.trim()) { find("skipping").close(); decide("/skip", { item: view.item, why: why.trim() }); } };

  main.addEventListener("click", (event) => {
    const turn = event.target.closest("[data-turn]");
    if (turn && kind === "marks") pick(turn);
    const button = event.target.closest("button");
    if (!button || button.disabled) return;
    const { answer: value, rank: ranked, label } = button.dataset;
    if (value) { button.classList.add("had"); answer(JSON.parse(value)); }
    else if (ranked !== undefined) rank(Number(ranked));
    else if (label !== undefined) {
      if (kind === "marks") mark(label);
      else if (find("finish")) {
        state.labels = state.labels.includes(label) ? state.labels.filter((one) => one !== label) : [...state.labels, label];
        drawLabels();
        changed();
      } else { button.classList.add("had"); answer({ labels: [label] }); }
    } else if (button.id === "finish") finish();
    else if (button.id === "back") { // the last place was taken by itself, with the one before it
      const full = state.order.length === main.querySelectorAll("[data-rank]").length;
      state.order = state.order.slice(0, full ? -2 : -1);
      drawRanking();
      changed();
    }
    else if (button.id === "undo") decide("/undo", {});
    else if (button.id === "skip") { find("why").value = ""; find("skipping").showModal(); }
    else if (button.id === "note-open") { noting(find("noted").hidden); if (!find("noted").hidden) find("note").focus(); }
  });
  // Pressing a button must not take away the words that are selected.
  main.addEventListener("mousedown", (event) => { if (event.target.closest("[data-label]")) event.preventDefault(); });
  main.addEventListener("focusin", (event) => { if (kind === "marks" && event.target.matches("[data-turn]")) pick(event.target); });

  find("skipping").addEventListener("click", (event) => { const { why } = event.target.closest("button")?.dataset || {}; if (why) skip(why); });
  find("why-send").addEventListener("click", () => skip(find("why").value));
  find("why").addEventListener("keydown", (event) => { if (event.key === "Enter") { event.preventDefault(); skip(find("why").value); } });
  find("help-open").addEventListener("click", () => find("help").showModal());
  const keysOn = find("keys-on");
  keysOn.checked = kept("keys") !== false;
  keysOn.addEventListener("change", () => keep("keys", keysOn.checked));

  document.addEventListener("keydown", (event) => {
    const typing = event.target.matches("input:not([type=checkbox]), textarea, select");
    if (typing && event.key === "Escape" && !event.target.closest("dialog")) { find("ask").focus(); return; }
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && kind === "edit" && find("finish") && !find("finish").disabled) { event.preventDefault(); finish(); return; }
    if (typing || event.repeat || event.ctrlKey || event.metaKey || event.altKey || !keysOn.checked) return;
    const open = document.querySelector("dialog[open]");
    if (!open && event.key === "?") { event.preventDefault(); find("help").showModal(); return; }
    if (event.key === "Enter" && (kind === "edit" || event.target.matches("button, a, summary"))) return;
    if (!open && kind === "marks" && (event.key === "j" || event.key === "k")) {
      const turns = [...main.querySelectorAll("[data-turn]")];
      const next = turns[turns.indexOf(current) + (event.key === "j" ? 1 : -1)];
      if (next) { next.focus(); next.scrollIntoView({ block: "nearest" }); }
      return;
    }
    const button = [...(open || main).querySelectorAll("[data-keys]")].find((one) => one.dataset.keys.split(" ").includes(event.key));
    if (!button || button.disabled) return;
    event.preventDefault();
    button.click();
  });

  window.addEventListener("beforeunload", (event) => { if (pending && !kept("pending")) event.preventDefault(); });
  setInterval(() => { if (view && view.item && !document.hidden && !pending) call("/draft", { item: view.item, body: state }).catch(() => {}); }, RENEW);

  const guide = find("guide");
  if (guide && window.matchMedia("(max-width: 1000px)").matches) guide.open = kept("guide") === true;
  if (guide) guide.addEventListener("toggle", () => keep("guide", guide.open));

  if (pending) send();
  else load();
})();
