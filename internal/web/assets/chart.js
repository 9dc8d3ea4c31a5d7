// Draws the last six hours of a probe with uPlot in the place of the picture that the server has made.
'use strict';
(() => {
  const plot = document.getElementById('plot');
  if (!plot || !window.uPlot) return;
  const limit = Number(plot.dataset.limit) || 0;
  const marks = [0.001, 0.01, 0.1, 1, 10, 60, 600, 3600, 21600, 86400, 604800, 2592000, 31536000];
  const units = [[86400, 'd'], [3600, 'h'], [60, 'm'], [1, 's']];

  function words(v) {
    if (v == null) return '–';
    if (v < 1) return Number((v * 1000).toPrecision(2)) + 'ms';
    for (const [n, unit] of units) {
      if (v >= n) return (v / n < 10 ? (v / n).toFixed(1).replace(/\.0$/, '') : String(Math.round(v / n))) + unit;
    }
    return String(v);
  }
  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  let chart = null;
  let shape = '';
  let range = [0.001, 1];

  function options(sinks) {
    const axis = { stroke: style('--soft'), grid: { stroke: style('--line'), width: 1 }, ticks: { stroke: style('--line'), width: 1 } };
    const series = [{ value: (_, v) => (v == null ? '–' : new Date(v * 1000).toISOString().slice(11, 16) + ' UTC') }];
    sinks.forEach((s, i) => {
      const colour = style('--s' + (i % 4));
      series.push({ label: 'lag at ' + s, stroke: colour, width: 2, value: (_, v) => words(v), points: { show: false } });
      series.push({ label: 'latency at ' + s, stroke: colour, width: 1.5, dash: [2, 3], value: (_, v) => words(v), points: { show: false } });
    });
    if (limit) series.push({ label: 'pages above', stroke: style('--trouble'), width: 1.5, dash: [6, 4], value: (_, v) => words(v), points: { show: false } });
    return {
      width: plot.clientWidth - 18, height: 260, tzDate: (t) => uPlot.tzDate(new Date(t * 1000), 'Etc/UTC'),
      scales: { x: { time: true }, y: { distr: 3, log: 10, range: () => range } },
      axes: [
        { ...axis, values: (_, at) => at.map((t) => new Date(t * 1000).toISOString().slice(11, 16)) },
        { ...axis, size: 56, splits: () => marks.filter((m) => m >= range[0] && m <= range[1]), filter: (_, at) => at, values: (_, at) => at.map(words) },
      ],
      series, cursor: { drag: { x: true, y: false } }, legend: { live: true },
    };
  }

  async function draw() {
    let h;
    try {
      const answer = await fetch(new URL(plot.dataset.probe, document.baseURI));
      if (!answer.ok) return;
      h = (await answer.json()).history;
    } catch {
      return; // the server's picture stays; the next minute tries again
    }
    if (!h || !h.sinks || !h.step) return;
    const all = h.sinks.slice(0, 4);
    const whole = Math.max(0, ...all.map((s) => Math.max(s.lag.length, s.latency.length)));
    // The time before anything was known is left out, as in the server's picture.
    const known = all.flatMap((s) => [s.lag, s.latency]).map((l) => l.findIndex((v) => v != null)).filter((i) => i >= 0);
    const first = Math.max(0, Math.min(whole - 30, ...known));
    const length = whole - first;
    const start = Date.parse(h.start) / 1000 + first * h.step;
    const data = [Array.from({ length }, (_, i) => start + i * h.step)];
    let low = Infinity, high = 0;
    for (const s of all) {
      for (const values of [s.lag, s.latency]) {
        // A logarithm knows no zero, and a clock that is off makes less than that.
        const line = Array.from({ length }, (_, i) => (values[first + i] == null ? null : Math.max(values[first + i], 0.001)));
        for (const v of line) if (v != null) { low = Math.min(low, v); high = Math.max(high, v); }
        data.push(line);
      }
    }
    if (!high) return;
    if (limit) {
      data.push(Array.from({ length }, () => limit));
      high = Math.max(high, limit);
    }
    range = [low * 0.7, Math.max(high * 1.3, low * 10)];
    const names = all.map((s) => s.sink);
    if (!chart || shape !== names.join('\n')) {
      if (chart) chart.destroy();
      plot.hidden = false;
      document.body.classList.add('charted');
      chart = new uPlot(options(names), data, plot);
      shape = names.join('\n');
    } else {
      chart.setData(data);
    }
  }

  function again() {
    shape = '';
    draw();
  }
  draw();
  setInterval(draw, 60000);
  let resizing = 0;
  window.addEventListener('resize', () => {
    clearTimeout(resizing);
    resizing = setTimeout(() => chart && chart.setSize({ width: plot.clientWidth - 18, height: 260 }), 150);
  });
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', again);
})();
