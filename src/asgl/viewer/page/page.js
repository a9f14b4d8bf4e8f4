"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const ICONS = { generating: "▸", computing: "▪", waiting: "·", tool: "⚒", retrying: "↻", idle: "◦", done: "✓", failed: "✗", cancelled: "−" };
  const ROW = 24, BAR = 12;
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };
  const seconds = (value) => (value === null ? "" : value < 10 ? `${value.toFixed(2)} s` : `${value.toFixed(1)} s`);
  const percent = (share) => (share === null ? "" : `${Math.round(share * 100)}%`);

  // --- the run that is shown, and its tree -------------------------------------------------------

  let run, children, open, visible, selected = -1, matches = [], query = "", bounds = [0, 1];
  const said = new Map();
  const textOf = (place) => {
    if (!said.has(place)) said.set(place, run.streams[place].spans.map((span) => span[0]).join(""));
    return said.get(place);
  };

  function choose(number) {
    run = data.runs[number] || { streams: [], steps: [], requests: [], evictions: [], counts: {}, model: "(nothing in this trace)", seconds: 0 };
    children = run.streams.map(() => []);
    run.streams.forEach((stream, place) => { if (stream.up >= 0) children[stream.up].push(place); });
    open = new Set(run.streams.keys());
    said.clear();
    selected = -1;
    bounds = [0, Math.max(run.seconds, 1e-6)];
    $("model").textContent = run.model;
    const counts = Object.entries(run.counts).map(([state, count]) => `${count} ${state}`).join(", ");
    $("summary").textContent = [
      run.device && `on ${run.device}`, seconds(run.seconds), counts, `${run.generated || 0} tokens`,
      run.hits != null && `${percent(run.hits)} of prompts cached`, `${run.evicted || 0} evicted`, `${run.retractions || 0} retractions`,
    ].filter(Boolean).join(" · ");
    showErrors();
    find("");
    const first = run.streams.findIndex((stream) => stream.state === "failed");
    if (run.streams.length) select(Math.max(first, 0), false);
    drawTime();
  }

  function layOut() {
    const shown = [];
    const hits = query ? new Set() : null;
    if (hits) for (const place of matches) for (let at = place; at >= 0 && !hits.has(at); at = run.streams[at].up) hits.add(at);
    const roots = run.streams.map((_, place) => place).filter((place) => run.streams[place].up < 0);
    const walk = roots.map((place, at) => [place, 0, at + 1, roots.length]).reverse();
    while (walk.length) {
      const [place, depth, position, size] = walk.pop(), below = children[place];
      if (hits && !hits.has(place)) continue;
      shown.push([place, depth, position, size]);
      if (open.has(place)) for (let at = below.length - 1; at >= 0; at--) walk.push([below[at], depth + 1, at + 1, below.length]);
    }
    visible = shown;
    drawTree();
  }

  // Only the rows in the window are in the document: a hundred thousand streams scroll as ten do.
  function drawTree() {
    const tree = $("tree"), top = Math.max(Math.floor(tree.scrollTop / ROW) - 10, 0);
    const bottom = Math.min(top + Math.ceil((tree.clientHeight || 600) / ROW) + 20, visible.length);
    const rows = [make("span", { style: `display:block;height:${visible.length * ROW}px;width:1px` })];
    for (let at = top; at < bottom; at++) {
      const [place, depth, position, size] = visible[at], stream = run.streams[place];
      const row = make("div", { id: `stream-${place}` });
      row.style.top = `${at * ROW}px`;
      row.style.paddingLeft = `${0.4 + depth * 1.1}rem`;
      row.setAttribute("role", "treeitem");
      row.setAttribute("aria-level", depth + 1);
      row.setAttribute("aria-posinset", position);
      row.setAttribute("aria-setsize", size);
      row.setAttribute("aria-selected", place === selected);
      if (children[place].length) row.setAttribute("aria-expanded", open.has(place));
      row.setAttribute("aria-label", `${stream.title}, ${stream.state}, ${stream.tokens} tokens, ${seconds(stream.seconds)}`);
      const twist = make("span", { className: "twist", textContent: children[place].length ? (open.has(place) ? "▾" : "▸") : "" });
      twist.addEventListener("click", (event) => { event.stopPropagation(); toggle(place); });
      row.append(twist,
        make("span", { className: `state ${stream.state}`, textContent: ICONS[stream.state] || "?", title: stream.state }),
        make("span", { className: "name", textContent: stream.title }),
        make("span", { className: stream.reason ? "said failed" : "said", textContent: stream.reason || textOf(place).slice(-200).trim() }),
        make("span", { className: "num", textContent: `${stream.tokens} · ${seconds(stream.seconds)}` }));
      row.addEventListener("click", () => select(place));
      rows.push(row);
    }
    tree.replaceChildren(...rows);
    tree.style.height = `${Math.min(visible.length * ROW + 4, innerHeight * 0.75)}px`;
    if (selected >= 0 && document.getElementById(`stream-${selected}`)) tree.setAttribute("aria-activedescendant", `stream-${selected}`);
    else tree.removeAttribute("aria-activedescendant");
  }

  function toggle(place) {
    if (open.has(place)) open.delete(place); else open.add(place);
    layOut();
  }

  function select(place, reveal = true) {
    selected = place;
    for (let at = run.streams[place].up; at >= 0; at = run.streams[at].up) open.add(at);
    layOut();
    const at = visible.findIndex(([one]) => one === place), tree = $("tree");
    if (reveal && at >= 0) {
      if (at * ROW < tree.scrollTop) tree.scrollTop = at * ROW;
      if ((at + 1) * ROW > tree.scrollTop + tree.clientHeight) tree.scrollTop = (at + 1) * ROW - tree.clientHeight;
    }
    drawTree();
    showDetail();
    drawTime();
  }

  $("tree").addEventListener("scroll", () => requestAnimationFrame(drawTree));
  $("tree").addEventListener("keydown", (event) => {
    const at = visible.findIndex(([place]) => place === selected), page = Math.floor($("tree").clientHeight / ROW);
    const go = (to) => visible.length && select(visible[Math.min(Math.max(to, 0), visible.length - 1)][0]);
    const keys = {
      ArrowDown: () => go(at + 1), ArrowUp: () => go(at - 1), Home: () => go(0), End: () => go(visible.length - 1),
      PageDown: () => go(at + page), PageUp: () => go(at - page),
      ArrowRight: () => { if (selected < 0) return; if (!open.has(selected)) toggle(selected); else if (children[selected].length) select(children[selected][0]); },
      ArrowLeft: () => { if (selected < 0) return; if (open.has(selected) && children[selected].length) toggle(selected); else if (run.streams[selected].up >= 0) select(run.streams[selected].up); },
      Enter: () => $("detail").focus(), " ": () => $("detail").focus(),
    };
    if (keys[event.key]) { event.preventDefault(); keys[event.key](); }
  });

  // --- what a stream says ------------------------------------------------------------------------

  function marked(text) {
    if (!query) return [text];
    const parts = [], lower = text.toLowerCase();
    let from = 0;
    for (let at = lower.indexOf(query); at >= 0; at = lower.indexOf(query, from)) {
      parts.push(text.slice(from, at), make("mark", { textContent: text.slice(at, at + query.length) }));
      from = at + query.length;
    }
    return [...parts, text.slice(from)];
  }

  function spanOf([text, how, logprob, top]) {
    const span = make("span", {}, ...marked(text));
    span.style.background = `var(--h-${data.hows[how]})`;
    span.dataset.how = data.hows[how];
    if (logprob !== undefined) {
      const likely = (value) => (value === null ? "0" : `${(100 * Math.exp(value)).toFixed(1)}%`);
      span.dataset.p = likely(logprob);
      span.style.setProperty("--p", logprob === null ? 0 : Math.exp(logprob));
      span.tabIndex = 0;
      const told = [`${JSON.stringify(text)} ${likely(logprob)}, ${data.hows[how]}`, ...(top || []).map(([other, value]) => `  ${JSON.stringify(other)} ${likely(value)}`)].join("\n");
      span.setAttribute("aria-label", told);
      const show = () => { const box = span.getBoundingClientRect(); tip(told, box.left, box.bottom + 4); };
      span.addEventListener("mouseenter", show);
      span.addEventListener("focus", show);
      span.addEventListener("mouseleave", hideTip);
      span.addEventListener("blur", hideTip);
    }
    return span;
  }

  function showDetail() {
    const stream = run.streams[selected], above = [];
    for (let at = stream.up; at >= 0; at = run.streams[at].up) above.unshift(at);
    $("detail-title").replaceChildren(
      ...above.flatMap((place) => { const button = make("button", { type: "button", textContent: run.streams[place].title }); button.addEventListener("click", () => select(place)); return [button, " / "]; }),
      stream.title, " ", make("span", { className: stream.state, textContent: `${ICONS[stream.state] || ""} ${stream.state}` }));
    const pieces = stream.spans.map(spanOf);
    $("text").replaceChildren(...pieces);
    if (!pieces.length) $("text").append(make("em", { textContent: stream.up >= 0 ? "says nothing beyond what it was forked from" : "says nothing that was computed" }));
    const facts = [["state", stream.state], ["why", stream.reason], ["tokens generated", stream.tokens], ["prompt cached", percent(stream.cached)],
      ["began at", seconds(stream.from)], ["took", seconds(stream.seconds)], ["waited for other streams", stream.waited ? seconds(stream.waited) : ""]];
    const body = [table([], facts.filter(([, value]) => value !== "" && value !== null))];
    if (stream.ops.length) {
      body.push(make("h3", { textContent: "Ops" }), table(["op", "state", "tokens", "cached of prompt", "took"], stream.ops.map((op) =>
        [op.title, state(op.state), op.tokens, op.prompt ? `${op.cached} of ${op.prompt}` : "", seconds(op.seconds)])));
      const told = stream.ops.flatMap((op) => [
        ...(op.reason ? [[op.title, state(op.state), op.reason]] : []),
        ...op.rejected.map(([text, reason]) => [op.title, state("retrying"), `${JSON.stringify(text)} was not valid: ${reason}`]),
        ...op.tools.map(([tool, args, how, took, answer]) => [`${tool}(${args})`, state(how), `${seconds(took)} ${answer}`]),
        ...op.budgets.map(([spent, tokens, limit]) => [op.title, "budget", `${spent}${tokens === null ? "" : ` of ${tokens}`} tokens spent${limit === null ? "" : `, ${limit} s allowed`}`]),
      ]);
      if (told.length) body.push(make("h3", { textContent: "Tools, retries, errors, budgets" }), table(["", "", ""], told));
    }
    $("ops").replaceChildren(...body);
  }

  const state = (name) => make("span", { className: name, textContent: `${ICONS[name] || ""} ${name}` });

  function table(heads, rows) {
    const result = make("table");
    if (heads.some(Boolean)) result.append(make("thead", {}, make("tr", {}, ...heads.map((head) => { const cell = make("th", { textContent: head }); cell.scope = "col"; return cell; }))));
    result.append(make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map((cell) => make("td", {}, typeof cell === "number" ? String(cell) : cell))))));
    return result;
  }

  // --- errors ------------------------------------------------------------------------------------

  function showErrors() {
    const told = [];
    run.streams.forEach((stream, place) => {
      if (stream.state === "failed") told.push([place, `${stream.title} failed: ${stream.reason || "no reason was told"}`]);
      for (const op of stream.ops) {
        if (op.state === "failed" && stream.reason !== op.reason) told.push([place, `${stream.title}, ${op.title}: ${op.reason}`]);
        for (const [text, reason] of op.rejected) told.push([place, `${stream.title}, ${op.title}: ${JSON.stringify(text)} was not valid: ${reason}`]);
        for (const [tool, args, how, , answer] of op.tools) if (how === "failed") told.push([place, `${stream.title}: the tool ${tool}(${args}) failed: ${answer}`]);
      }
    });
    for (const request of run.requests) for (const [time, cause] of request[11]) told.push([request[1], `request ${request[0]} was retracted at ${seconds(time)}: ${cause}`]);
    $("errors-section").hidden = !told.length;
    $("errors-title").textContent = `Errors and their causes (${told.length})`;
    $("errors").replaceChildren(...told.slice(0, 1000).map(([place, text]) => {
      const button = make("button", { type: "button", textContent: text });
      if (place >= 0) button.addEventListener("click", () => { select(place); $("detail").focus(); });
      return make("li", {}, button);
    }));
  }

  // --- search ------------------------------------------------------------------------------------

  function find(text) {
    query = text.trim().toLowerCase();
    matches = [];
    if (query) run.streams.forEach((stream, place) => {
      const where = [stream.title, stream.state, stream.reason, ...stream.ops.map((op) => `${op.title} ${op.reason}`)].join("\n");
      if (where.toLowerCase().includes(query) || textOf(place).toLowerCase().includes(query)) matches.push(place);
    });
    $("found").textContent = query ? `${matches.length} of ${run.streams.length} streams` : "";
    $("tree").scrollTop = 0;
    layOut();
    if (selected >= 0) showDetail();
  }

  $("search").addEventListener("input", (event) => find(event.target.value));
  $("search").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && matches.length) {
      const step = event.shiftKey ? -1 : 1, at = matches.indexOf(selected);
      select(matches[(at + step + matches.length) % matches.length]);
    }
    if (event.key === "Escape") { event.target.value = ""; find(""); }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && !/^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName)) { event.preventDefault(); $("search").focus(); }
  });

  // --- time --------------------------------------------------------------------------------------

  function tip(text, x, y) {
    const box = $("tip");
    box.textContent = text;
    box.hidden = false;
    box.style.left = `${Math.max(Math.min(x, innerWidth - box.offsetWidth - 8), 4)}px`;
    box.style.top = `${y + box.offsetHeight > innerHeight ? y - box.offsetHeight - 30 : y}px`;
  }
  const hideTip = () => { $("tip").hidden = true; };

  function canvasOf(id) {
    const canvas = $(id), width = canvas.clientWidth, height = canvas.clientHeight, scale = devicePixelRatio || 1;
    if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
      canvas.width = Math.round(width * scale);
      canvas.height = Math.round(height * scale);
    }
    const context = canvas.getContext("2d");
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.clearRect(0, 0, width, height);
    context.font = "11px system-ui, sans-serif";
    return [context, width, height];
  }
  const xOf = (time, width) => ((time - bounds[0]) / (bounds[1] - bounds[0])) * width;

  function drawSeries() {
    const [context, width, height] = canvasOf("series"), middle = 62;
    const most = Math.max(1, ...run.steps.map((step) => step[2])), crowd = Math.max(1, ...run.steps.map((step) => Math.max(step[3], step[4])));
    // tokens of each step, with running and waiting as lines
    context.fillStyle = css("--computing");
    for (const [time, took, tokens] of run.steps) {
      const left = xOf(time - took, width), right = xOf(time, width);
      if (right < 0 || left > width) continue;
      const tall = (tokens / most) * (middle - 16);
      context.fillRect(left, middle - tall, Math.max(right - left - 0.5, 0.5), tall);
    }
    for (const [field, color] of [[3, "--generating"], [4, "--waiting"]]) {
      context.strokeStyle = css(color);
      context.beginPath();
      run.steps.forEach((step, index) => { const x = xOf(step[0], width), y = middle - (step[field] / crowd) * (middle - 16); if (index) context.lineTo(x, y); else context.moveTo(x, y); });
      context.stroke();
    }
    // the KV cache: what runs, and above it what is cached
    const floor = height - 14, tall = floor - middle - 8;
    if (run.capacity) {
      const area = (color, values) => {
        context.fillStyle = css(color);
        context.beginPath();
        context.moveTo(xOf(run.steps.length ? run.steps[0][0] : 0, width), floor);
        run.steps.forEach((step, index) => context.lineTo(xOf(step[0], width), floor - (values[index] / run.capacity) * tall));
        context.lineTo(xOf(run.steps.length ? run.steps[run.steps.length - 1][0] : 0, width), floor);
        context.fill();
      };
      area("--h-cached", run.steps.map((step) => run.capacity - step[5]));
      area("--generating", run.steps.map((step) => Math.max(run.capacity - step[5] - step[6], 0)));
      context.strokeStyle = css("--line");
      context.strokeRect(0, middle + 8, width, tall);
    }
    context.fillStyle = css("--failed");
    for (const [time] of run.evictions) context.fillRect(xOf(time, width), floor - 5, 1.5, 5);
    context.fillStyle = css("--muted");
    context.fillText(`tokens of each step, up to ${most}; running and waiting, up to ${crowd}`, 4, 11);
    if (run.capacity) context.fillText(`KV cache, ${run.capacity} tokens`, 4, middle + 20);
    for (let part = 0; part <= 4; part++) {
      const text = seconds(bounds[0] + ((bounds[1] - bounds[0]) * part) / 4), room = context.measureText(text).width;
      context.fillText(text, Math.min(Math.max((width * part) / 4 - room / 2, 2), width - room - 2), height - 3);
    }
    $("series").setAttribute("aria-label", `${run.steps.length} steps over ${seconds(run.seconds)}; up to ${most} tokens a step, ${crowd} requests at once`);
  }

  let inOrder = [];
  function drawRequests() {
    inOrder = run.requests;
    $("rows-space").style.height = `${Math.max(inOrder.length * BAR - 188, 0)}px`;
    const [context, width, height] = canvasOf("requests");
    const top = Math.floor($("rows").scrollTop / BAR);
    for (let at = top; at < Math.min(inOrder.length, top + Math.ceil(height / BAR) + 1); at++) {
      const [, place, submitted, admitted, first, ended, , , , how, , retractions] = inOrder[at];
      const y = at * BAR - $("rows").scrollTop, end = ended === null ? run.seconds : ended;
      if (place === selected && place >= 0) { context.fillStyle = css("--h-joined"); context.fillRect(0, y, width, BAR); }
      const part = (from, to, color) => {
        if (from === null || to === null) return;
        context.fillStyle = css(color);
        context.fillRect(xOf(from, width), y + 2, Math.max(xOf(to, width) - xOf(from, width), 1), BAR - 4);
      };
      part(submitted, admitted === null ? end : admitted, "--waiting");
      if (admitted !== null) part(admitted, first === null ? end : first, "--computing");
      part(first, end, "--generating");
      if (how === "failed" || how === "cancelled") { context.fillStyle = css("--failed"); context.fillRect(xOf(end, width) - 2, y + 1, 3, BAR - 2); }
      context.fillStyle = css("--failed");
      for (const [time] of retractions) context.fillRect(xOf(time, width) - 1, y, 2, BAR);
    }
    $("requests").setAttribute("aria-label", `${inOrder.length} requests: when each waited, computed its prompt, and generated. The table of a stream's ops says the same in words.`);
  }
  function drawTime() { drawSeries(); drawRequests(); }

  function zoom(factor, center = (bounds[0] + bounds[1]) / 2) {
    const all = Math.max(run.seconds, 1e-6), span = Math.min(Math.max((bounds[1] - bounds[0]) * factor, all / 5000), all);
    let from = center - ((center - bounds[0]) / (bounds[1] - bounds[0])) * span;
    from = Math.min(Math.max(from, 0), all - span);
    bounds = [from, from + span];
    drawTime();
  }
  function pan(share) {
    const all = Math.max(run.seconds, 1e-6), span = bounds[1] - bounds[0], from = Math.min(Math.max(bounds[0] + share * span, 0), all - span);
    bounds = [from, from + span];
    drawTime();
  }
  $("zoom-in").addEventListener("click", () => zoom(0.5));
  $("zoom-out").addEventListener("click", () => zoom(2));
  $("zoom-all").addEventListener("click", () => zoom(1e9));
  const timeAt = (event, canvas) => { const box = canvas.getBoundingClientRect(); return bounds[0] + ((event.clientX - box.left) / box.width) * (bounds[1] - bounds[0]); };
  for (const id of ["series", "requests"]) $(id).addEventListener("wheel", (event) => {
    if (!event.ctrlKey) return;
    event.preventDefault();
    zoom(event.deltaY > 0 ? 1.25 : 0.8, timeAt(event, $(id)));
  }, { passive: false });
  for (const id of ["series", "rows"]) $(id).addEventListener("keydown", (event) => {
    const keys = { "+": () => zoom(0.5), "=": () => zoom(0.5), "-": () => zoom(2), "0": () => zoom(1e9), ArrowLeft: () => pan(-0.2), ArrowRight: () => pan(0.2) };
    if (keys[event.key]) { event.preventDefault(); keys[event.key](); }
  });
  $("rows").addEventListener("scroll", () => requestAnimationFrame(drawRequests));
  const requestAt = (event) => inOrder[Math.floor((event.clientY - $("requests").getBoundingClientRect().top + $("rows").scrollTop) / BAR)];
  $("requests").addEventListener("mousemove", (event) => {
    const request = requestAt(event);
    if (!request) return hideTip();
    const [number, place, submitted, admitted, first, ended, prompt, cached, generated, how, reason] = request;
    tip([`request ${number}${place >= 0 ? ` of ${run.streams[place].title}` : ""}: ${how}${reason ? `, ${reason}` : ""}`,
      `${prompt} tokens of prompt, ${cached} cached; ${generated} generated`,
      `waited ${seconds((admitted === null ? run.seconds : admitted) - submitted)}${first === null ? "" : `, first token after ${seconds(first - submitted)}`}${ended === null ? "" : `, ${seconds(ended - submitted)} in all`}`,
    ].join("\n"), event.clientX + 12, event.clientY + 14);
  });
  $("requests").addEventListener("mouseleave", hideTip);
  $("requests").addEventListener("click", (event) => { const request = requestAt(event); if (request && request[1] >= 0) select(request[1]); });
  $("series").addEventListener("mousemove", (event) => {
    const time = timeAt(event, $("series"));
    const step = run.steps.find((one) => time <= one[0] && time >= one[0] - one[1]);
    if (!step) return hideTip();
    tip(`at ${seconds(step[0])}: ${step[2]} tokens for ${step[7]} requests in ${(1000 * step[1]).toFixed(1)} ms\n${step[3]} running, ${step[4]} waiting\nKV cache: ${step[5]} free, ${step[6]} cached`, event.clientX + 12, event.clientY + 14);
  });
  $("series").addEventListener("mouseleave", hideTip);
  addEventListener("resize", () => requestAnimationFrame(() => { drawTree(); drawTime(); }));

  // --- light and dark ----------------------------------------------------------------------------

  function dark(on) {
    document.documentElement.classList.toggle("dark", on);
    $("theme").textContent = on ? "Light" : "Dark";
    $("theme").setAttribute("aria-pressed", on);
    if (run) drawTime();
  }
  const prefers = matchMedia("(prefers-color-scheme: dark)");
  prefers.addEventListener("change", (event) => dark(event.matches));
  $("theme").addEventListener("click", () => dark(!document.documentElement.classList.contains("dark")));

  const legend = (id, entries) => $(id).replaceChildren(...entries.map(([name, color]) => { const mark = make("i"); mark.style.background = color; return make("span", {}, mark, name); }));
  legend("legend", data.hows.slice(1).map((how) => [how, `var(--h-${how})`]));
  legend("time-legend", [["waiting", "var(--waiting)"], ["computing the prompt", "var(--computing)"], ["generating", "var(--generating)"], ["retracted, failed, evicted", "var(--failed)"], ["cached in the KV cache", "var(--h-cached)"]]);
  if (data.runs.length > 1) {
    $("runs-label").hidden = false;
    data.runs.forEach((one, number) => $("runs").append(make("option", { value: number, textContent: `${number + 1}: ${one.model}` })));
    $("runs").addEventListener("change", (event) => choose(Number(event.target.value)));
  }
  dark(prefers.matches);
  choose(0);
  document.documentElement.dataset.ready = "yes";
})();
