// Keeps a page of lag-monitor up to date, and filters its list. Everything that is said comes from the
// server as HTML; without this file the pages say the same and renew themselves.
'use strict';
(() => {
  const body = document.body;
  const byId = (id) => document.getElementById(id);
  body.classList.add('scripted');

  // --- the filter -------------------------------------------------------------------------------------
  const form = byId('filter');
  const rows = byId('probe-rows');
  const fields = form ? { q: form.elements.q, label: form.elements.label, state: form.elements.state } : {};

  function wanted(row) {
    const text = row.textContent.toLowerCase();
    const label = fields.label ? fields.label.value : '';
    return (!fields.state.value || row.classList.contains(fields.state.value)) &&
      (!label || [...row.querySelectorAll('small i')].some((i) => i.textContent === label)) &&
      fields.q.value.toLowerCase().split(/\s+/).every((word) => text.includes(word));
  }

  function filter() {
    if (!form) return;
    let shown = 0;
    const all = rows.children.length;
    const on = Boolean(fields.q.value.trim() || (fields.label && fields.label.value) || fields.state.value);
    for (const row of rows.children) {
      row.hidden = on && !wanted(row);
      if (!row.hidden) shown++;
    }
    byId('shown').hidden = byId('clear').hidden = !on;
    const text = `${shown} of ${all} shown`;
    if (byId('shown').textContent !== text) byId('shown').textContent = text;
    const nothing = byId('nothing');
    nothing.hidden = shown > 0;
    nothing.textContent = all ? 'No probe fits the filter.' : 'No probes are configured.';
  }

  // remember puts the filter into the address, so that it can be sent to somebody and survives a reload.
  function remember() {
    const q = new URLSearchParams();
    for (const [name, field] of Object.entries(fields)) if (field && field.value.trim()) q.set(name, field.value.trim());
    history.replaceState(null, '', q.size ? '?' + q : location.pathname);
    filter();
  }

  if (form) {
    form.addEventListener('submit', (e) => { e.preventDefault(); remember(); });
    form.addEventListener('input', remember);
    byId('clear').addEventListener('click', (e) => {
      e.preventDefault();
      for (const field of Object.values(fields)) if (field) field.value = '';
      remember();
      fields.q.focus();
    });
    rows.addEventListener('click', (e) => {
      const label = e.target.closest('small i');
      if (!label) return;
      fields.q.value = label.textContent;
      remember();
    });
  }

  // --- the strip of heartbeats: one stop for the Tab key, arrows inside --------------------------------
  function rove(focus) {
    const beats = [...document.querySelectorAll('.strip .beat')];
    if (!beats.length) return;
    const current = focus || beats.find((b) => b === document.activeElement) || beats[beats.length - 1];
    for (const b of beats) b.tabIndex = b === current ? 0 : -1;
  }
  document.addEventListener('keydown', (e) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[e.key];
    if (!step || !e.target.matches || !e.target.matches('.strip .beat')) return;
    const beats = [...document.querySelectorAll('.strip .beat')];
    const next = beats[Math.min(Math.max(beats.indexOf(e.target) + step, 0), beats.length - 1)];
    e.preventDefault();
    rove(next);
    next.focus();
  });

  // --- buttons that copy -------------------------------------------------------------------------------
  function copyButtons() {
    if (!navigator.clipboard) return; // only on https and on this machine
    for (const b of document.querySelectorAll('.copy')) b.hidden = false;
  }
  document.addEventListener('click', async (e) => {
    const button = e.target.closest('.copy');
    if (!button) return;
    try {
      await navigator.clipboard.writeText(byId(button.dataset.copy).textContent);
      button.textContent = 'Copied';
    } catch {
      button.textContent = 'Not allowed: select the text';
    }
    setTimeout(() => { button.textContent = 'Copy'; }, 2000);
  });

  // --- updates -----------------------------------------------------------------------------------------
  function element(html) {
    const t = document.createElement('template');
    t.innerHTML = html;
    return t.content.firstElementChild;
  }

  // reading tells whether somebody is selecting text there, who would lose it.
  function reading(old) {
    const s = document.getSelection();
    return s && !s.isCollapsed && s.containsNode(old, true);
  }

  function replace(old, next) {
    for (const d of old.querySelectorAll('details[id][open]')) {
      const same = next.querySelector('#' + CSS.escape(d.id));
      if (same) same.open = true;
    }
    const left = [...old.querySelectorAll('.scroll')].map((s) => s.scrollLeft);
    // A heading that says the same is kept: a screen reader would read it out again.
    const was = old.querySelector('h1'), is = next.querySelector('h1');
    if (was && is && was.textContent === is.textContent) is.replaceWith(was);
    if (old.matches('tr') && old.className !== next.className) next.classList.add('changed');
    old.replaceWith(next);
    next.querySelectorAll('.scroll').forEach((s, i) => { s.scrollLeft = left[i] || 0; });
  }

  const waiting = new Map(); // what could not be shown because somebody was selecting
  function apply(update) {
    const focused = document.activeElement && document.activeElement.id;
    for (const s of update.sections || []) waiting.set(s.id, s);
    for (const id of update.gone || []) {
      waiting.delete(id);
      const old = byId(id);
      if (old) old.remove();
    }
    const sorted = new Set();
    for (const [id, s] of waiting) {
      const old = byId(id);
      if (old && reading(old)) continue;
      waiting.delete(id);
      const next = element(s.html);
      if (old) replace(old, next);
      else if (s.into && byId(s.into)) byId(s.into).append(next);
      if (s.into) sorted.add(s.into);
      if (next.dataset.title) document.title = next.dataset.title + ' · lag-monitor';
    }
    for (const id of sorted) sort(byId(id));
    filter();
    rove();
    copyButtons();
    if (focused && document.activeElement === body) {
      const again = byId(focused);
      if (again) again.focus({ preventScroll: true });
    }
    document.dispatchEvent(new Event('updated'));
  }

  // sort puts the worst on top. Rows that are in order already are not touched.
  function sort(list) {
    if (!list) return;
    const before = [...list.children];
    const after = before.map((row) => [Number(row.dataset.o), row.id, row])
      .sort((a, b) => b[0] - a[0] || (a[1] < b[1] ? -1 : 1)).map((x) => x[2]);
    if (before.some((row, i) => row !== after[i])) list.append(...after);
  }

  const live = byId('live');
  let last = Date.now();
  let source = null;
  let mark = body.dataset.mark;

  function show() {
    const age = Math.round((Date.now() - last) / 1000);
    const stale = age > 15;
    const text = stale ? `not live: what you see is ${age < 120 ? age + ' s' : Math.round(age / 60) + ' min'} old` : 'live';
    body.classList.toggle('is-stale', stale);
    live.classList.toggle('stale', stale);
    live.hidden = false;
    if (live.textContent !== text) live.textContent = text;
    if (!stale && byId('now')) byId('now').textContent = new Date().toISOString().replace('T', ' ').slice(0, 19) + ' UTC';
  }

  function connect() {
    const url = new URL(body.dataset.root + body.dataset.events, document.baseURI);
    if (mark) url.searchParams.set('since', mark);
    source = new EventSource(url);
    const heard = () => { last = Date.now(); show(); };
    source.addEventListener('open', heard);
    source.addEventListener('tick', heard);
    source.addEventListener('update', (e) => {
      mark = e.lastEventId;
      heard();
      apply(JSON.parse(e.data));
    });
    source.addEventListener('reload', () => {
      // Another process answers. Behind a balancer that could be so each time: not more than once a minute.
      source.close();
      let before = 0;
      try { before = Number(sessionStorage.getItem('reloaded')); } catch { /* not allowed */ }
      if (Date.now() - before > 60000) {
        try { sessionStorage.setItem('reloaded', String(Date.now())); } catch { /* not allowed */ }
        location.reload();
      } else {
        setTimeout(connect, 10000);
      }
    });
    source.addEventListener('gone', () => { source.close(); location.reload(); });
    source.addEventListener('error', () => {
      show();
      // A refusal ends an EventSource for good; a lost connection it takes up again by itself.
      if (source.readyState === EventSource.CLOSED) setTimeout(connect, 10000);
    });
  }

  filter();
  rove();
  copyButtons();
  if (body.dataset.events && window.EventSource) {
    connect();
    setInterval(show, 1000);
    window.addEventListener('pagehide', () => source && source.close());
    window.addEventListener('pageshow', (e) => { if (e.persisted) connect(); });
  }
})();
