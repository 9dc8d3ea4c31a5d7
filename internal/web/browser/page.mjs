// Looks at the pages of lag-monitor with a real browser: in every state, light and dark, wide and narrow, with
// and without JavaScript. It prints a line of JSON for each check, {"name", "error"}; browser_test.go makes a
// subtest of each. Environment: BASE is where the scenes are served, SHOTS the folder for screenshots.
import { createRequire } from 'node:module';
import { mkdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';

const { BASE, SHOTS, BROWSER, NODE_PACKAGES, ONLY } = process.env;
const require = createRequire(join(NODE_PACKAGES, 'x.js'));
const { chromium } = require('playwright-core');
const axe = readFileSync(require.resolve('axe-core/axe.min.js'), 'utf8');
mkdirSync(SHOTS, { recursive: true });

const browser = await chromium.launch({
  executablePath: BROWSER,
  args: ['--headless', '--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-background-networking',
    '--disable-component-update', '--disable-sync', '--disable-quic', '--disable-dev-shm-usage'],
});
const patience = 30000; // for a machine that is busy with other things

function must(ok, text) {
  if (!ok) throw new Error(text);
}

// check runs f on a new page and reports. Whatever the page complains about is an error, too: a script that
// fails, a policy that is violated, a file that is missing.
async function check(name, options, f) {
  if (ONLY && !name.includes(ONLY)) return;
  const { expect = () => false, ...rest } = options;
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, ...rest });
  context.setDefaultTimeout(patience);
  const page = await context.newPage();
  const complaints = [];
  page.on('console', (m) => { if (m.type() === 'error' && !expect(m.text())) complaints.push('console: ' + m.text()); });
  page.on('pageerror', (e) => complaints.push('script: ' + e.message));
  let error = '';
  try {
    await f(page, context);
  } catch (e) {
    error = e.message;
    await page.screenshot({ path: join(SHOTS, 'failed-' + name.replaceAll(/[^a-z0-9]+/g, '-') + '.png') }).catch(() => {});
  }
  if (complaints.length) error = [error, ...complaints].filter(Boolean).join('\n');
  console.log(JSON.stringify({ name, error }));
  await context.close();
}

async function shot(page, name, whole = true) {
  await page.screenshot({ path: join(SHOTS, name + '.png'), fullPage: whole, animations: 'disabled' });
}

async function accessible(page) {
  // The page's policy allows no script of others; the remote control may.
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => window.axe.run(document, { resultTypes: ['violations'] }));
  must(!violations.length, violations.map((v) => `${v.id} (${v.impact}): ${v.help}\n` +
    v.nodes.slice(0, 4).map((n) => `  ${n.html.slice(0, 200)}\n  ${n.failureSummary}`).join('\n')).join('\n'));
}

async function noSideways(page) {
  const [inner, outer] = await page.evaluate(() => [document.documentElement.scrollWidth, window.innerWidth]);
  must(inner <= outer, `the page is ${inner} px wide in a window of ${outer}`);
}

const open = async (page, path) => {
  const answer = await page.goto(BASE + path, { waitUntil: 'load' });
  return answer;
};
const control = (query) => fetch(BASE + '/control?' + query, { method: 'POST' }).then((r) => must(r.ok, 'control: ' + r.status));
const text = (page, selector) => page.locator(selector).first().innerText();

const looks = [['light', { colorScheme: 'light' }], ['dark', { colorScheme: 'dark' }], ['phone', { viewport: { width: 390, height: 844 }, isMobile: true, hasTouch: true }]];
const states = ['fine', 'lagging', 'dropped', 'blind', 'paused', 'refused'];

// --- every state, on both pages, without a violation ---------------------------------------------------------
const firstWords = {
  fine: /All 3 probes are on time/, lagging: /1 of 3 probes is in trouble: users feel it, since \d\d:\d\d/, dropped: /1 of 3 probes is in trouble: users feel it/,
  blind: /1 of 3 probes is in trouble: nobody can tell whether users feel it/, paused: /Of 3 probes none is in trouble/, refused: /of 3 probes none is in trouble/,
};
for (const state of states) {
  for (const [look, options] of looks) {
    if (look !== 'light' && !['fine', 'lagging', 'dropped', 'blind'].includes(state)) continue;
    await check(`${state}/list/${look}`, options, async (page) => {
      await open(page, `/${state}/`);
      must(firstWords[state].test(await text(page, 'h1')), 'first words: ' + await text(page, 'h1'));
      await noSideways(page);
      await shot(page, `list-${state}-${look}`);
      await accessible(page);
    });
    await check(`${state}/probe/${look}`, options, async (page) => {
      await open(page, `/${state}/probes/orders`);
      await page.locator('#plot canvas').waitFor();
      await noSideways(page);
      await shot(page, `probe-${state}-${look}`);
      await accessible(page);
    });
  }
}

await check('empty/list', {}, async (page) => {
  await open(page, '/empty/');
  must(/No probes are configured/.test(await text(page, 'h1')), await text(page, 'h1'));
  await shot(page, 'list-empty');
  await accessible(page);
});

await check('unknown/probe', { expect: (t) => t.includes('404') }, async (page) => {
  const answer = await open(page, '/fine/probes/ordres');
  must(answer.status() === 404, 'status ' + answer.status());
  await shot(page, 'probe-unknown');
  await accessible(page);
  await page.getByRole('link', { name: 'orders' }).click();
  must(/orders is on time/.test(await text(page, 'h1')), await text(page, 'h1'));
});

// --- a thousand probes ---------------------------------------------------------------------------------------
await check('thousand/list', {}, async (page) => {
  await open(page, '/thousand/');
  must((await page.locator('#probe-rows tr').count()) === 1000, 'rows');
  const first = await page.locator('#probe-rows tr').first().getAttribute('class');
  must(first === 'trouble', 'the first row is ' + first);
  await page.locator('#live', { hasText: /^live$/ }).waitFor();
  await shot(page, 'list-thousand', false);
  await page.getByRole('searchbox').fill('team=team-07 tenant-00');
  await page.locator('#shown', { hasText: '5 of 1000 shown' }).waitFor();
  must((await page.locator('#probe-rows tr:visible').count()) === 5, 'visible rows');
  must(page.url().includes('q=team'), 'the address does not hold the filter: ' + page.url());
  await accessible(page);
  await page.getByRole('link', { name: 'show all' }).click();
  must((await page.locator('#probe-rows tr:visible').count()) === 1000, 'all rows again');
  await page.locator('#probe-rows small i').first().click();
  await page.locator('#shown', { hasText: '50 of 1000 shown' }).waitFor();
});

// --- filter: by keyboard, by address, without JavaScript ---------------------------------------------------
await check('filter/state', {}, async (page) => {
  await open(page, '/lagging/?state=trouble');
  must((await page.locator('#probe-rows tr:visible').count()) === 1, 'one row at first');
  // The rows that the server left out come with the first update.
  await page.waitForFunction(() => document.querySelectorAll('#probe-rows tr').length === 3);
  must((await page.locator('#probe-rows tr:visible').count()) === 1, 'one row after the update');
  await page.getByLabel('State').selectOption('');
  must((await page.locator('#probe-rows tr:visible').count()) === 3, 'three rows');
});

await check('filter/without JavaScript', { javaScriptEnabled: false }, async (page) => {
  await open(page, '/lagging/');
  await page.getByLabel('Text').fill('team=growth');
  await page.getByRole('button', { name: 'Filter' }).click();
  must((await page.locator('#probe-rows tr').count()) === 1, 'rows');
  must((await text(page, '#shown')).includes('1 of 3 shown'), await text(page, '#shown'));
  await page.getByLabel('Label').selectOption('channel=#shop-oncall');
  await page.getByRole('button', { name: 'Filter' }).click();
  must((await text(page, '#nothing')).includes('No probe fits'), 'nothing fits both');
  await page.getByRole('link', { name: 'show all' }).click();
  must((await page.locator('#probe-rows tr').count()) === 3, 'all rows');
});

// --- live: what happens is seen without a reload ---------------------------------------------------------------
await check('live/list', {}, async (page) => {
  await control('scene=fine');
  await open(page, '/live/');
  must(/All 3 probes are on time/.test(await text(page, 'h1')), await text(page, 'h1'));
  await page.locator('#live', { hasText: /^live$/ }).waitFor();
  await page.getByRole('searchbox').fill('team');
  await page.evaluate(() => { window.same = true; });
  await control('scene=lagging');
  await page.locator('h1', { hasText: '1 of 3 probes is in trouble' }).waitFor();
  must(/in trouble/.test(await page.title()), 'title ' + await page.title());
  must((await page.locator('#probe-rows tr').first().innerText()).includes('orders'), 'orders is not on top');
  must(await page.getByRole('searchbox').evaluate((e) => e === document.activeElement && e.value === 'team'), 'the search field lost what was typed');
  await control('scene=thousand');
  await page.waitForFunction(() => document.querySelectorAll('#probe-rows tr').length === 1000);
  must(!(await page.locator('#p-orders').count()), 'a probe that is gone is still there');
  await control('scene=fine');
  await page.waitForFunction(() => document.querySelectorAll('#probe-rows tr').length === 3);
  must(await page.evaluate(() => window.same), 'the page was loaded again');
});

await check('live/probe', { expect: (t) => t.includes('404') }, async (page) => {
  await control('scene=fine');
  await open(page, '/live/probes/orders');
  await page.locator('#plot canvas').waitFor();
  await page.locator('#mermaid summary').click();
  await page.locator('.strip .beat').last().focus();
  await control('scene=dropped');
  await page.locator('h1', { hasText: 'orders is losing messages' }).waitFor();
  must(await page.locator('#mermaid').evaluate((d) => d.open), 'the opened details were closed');
  must(await page.evaluate(() => document.activeElement.matches('.strip .beat')), 'the focus is lost: ' + await page.evaluate(() => document.activeElement.outerHTML.slice(0, 100)));
  await control('scene=empty');
  await page.getByRole('heading', { name: 'There is no probe' }).waitFor();
});

await check('live/stale', { expect: (t) => /ERR_|Failed to load/.test(t) }, async (page, context) => {
  await control('scene=fine');
  await open(page, '/live/');
  await page.locator('#live', { hasText: /^live$/ }).waitFor();
  await context.setOffline(true);
  await control('cut=1').catch(() => {}); // its own connection, too
  await page.locator('#live', { hasText: 'not live: what you see is' }).waitFor();
  await shot(page, 'list-stale', false);
  await context.setOffline(false);
  await page.locator('#live', { hasText: /^live$/ }).waitFor();
});

// --- the strip ------------------------------------------------------------------------------------------------
await check('strip', {}, async (page) => {
  await open(page, '/dropped/probes/orders');
  const beats = page.locator('.strip .beat');
  must((await beats.count()) === 120, 'beats');
  must((await page.locator('.strip .beat[tabindex="0"]').count()) === 1, 'more than one stop for the Tab key');
  await page.locator('.strip .beat.dropped').first().hover();
  const tip = page.locator('.strip .tip:visible');
  must((await tip.count()) === 1, 'tips shown: ' + await tip.count());
  const said = await tip.innerText();
  for (const word of ['heartbeat 92', 'dropped', 'dead lettered', 'orders-out', 'rejected', 'due ', 'sent ']) must(said.includes(word), `"${word}" is not in: ${said}`);
  await page.mouse.move(0, 0);
  await page.locator('.strip .beat[tabindex="0"]').focus();
  await page.keyboard.press('Home');
  must((await page.locator('.strip .tip:visible').innerText()).includes('heartbeat 9241'), 'Home');
  await page.keyboard.press('ArrowRight');
  must((await page.locator('.strip .tip:visible').innerText()).includes('heartbeat 9242'), 'ArrowRight');
  await page.locator('#strip').scrollIntoViewIfNeeded();
  await shot(page, 'strip', false);
});

await check('chart', {}, async (page) => {
  await open(page, '/lagging/probes/orders');
  const canvas = page.locator('#plot canvas');
  await canvas.waitFor();
  must(await page.locator('svg.chart').isHidden(), "the server's picture is still shown");
  await canvas.hover({ position: { x: 400, y: 100 }, force: true });
  await page.locator('#plot .u-legend', { hasText: /lag at orders-out.*(ms|s|m)\b/s }).waitFor();
  await page.locator('#plot').scrollIntoViewIfNeeded();
  await shot(page, 'chart', false);
  // The axis is drawn, not written: its words can only be seen by its own function.
  must(!(await text(page, '#plot .u-legend')).includes('e+'), 'a number for machines: ' + await text(page, '#plot .u-legend'));
});

await check('copy', { permissions: ['clipboard-read', 'clipboard-write'] }, async (page) => {
  await open(page, '/fine/probes/orders');
  await page.locator('#mermaid summary').click();
  await page.locator('#mermaid .copy').click();
  await page.locator('#mermaid .copy', { hasText: 'Copied' }).waitFor();
  must((await page.evaluate(() => navigator.clipboard.readText())).startsWith('flowchart LR'), 'clipboard');
});

// --- pause ------------------------------------------------------------------------------------------------------
for (const [how, options] of [['with JavaScript', {}], ['without JavaScript', { javaScriptEnabled: false }]]) {
  await check('pause/' + how, options, async (page) => {
    await control('scene=fine');
    await open(page, '/live/probes/orders');
    await page.getByLabel('For').selectOption('4h');
    await page.getByRole('button', { name: 'Pause' }).click();
    await page.getByRole('heading', { name: 'orders is paused' }).waitFor();
    must(page.url() === BASE + '/live/probes/orders', 'not back on the page: ' + page.url());
    await shot(page, 'probe-pausing-' + how.split(' ')[0], false);
    await page.getByRole('button', { name: 'Resume now' }).click();
    await page.getByRole('heading', { name: 'orders is on time' }).waitFor();
  });
}
await check('pause/not offered', {}, async (page) => {
  await open(page, '/fine/probes/orders');
  must(!(await page.getByRole('button', { name: 'Pause' }).count()), 'there is a button');
});

// --- without JavaScript ---------------------------------------------------------------------------------------
await check('without JavaScript/probe', { javaScriptEnabled: false }, async (page) => {
  await open(page, '/lagging/probes/orders');
  must(await page.locator('svg.chart').isVisible(), 'no picture of the history');
  must(await page.locator('#plot').isHidden(), 'an empty frame');
  await page.locator('.strip .beat').nth(119).hover();
  must((await page.locator('.strip .tip:visible').count()) === 1, 'no tip');
  await page.locator('#mermaid summary').click();
  must((await text(page, '#mermaid-text')).startsWith('flowchart LR'), 'no Mermaid text');
  await page.locator('#hours summary').click();
  must((await page.locator('#hours tbody tr').count()) >= 6, 'no table of the hours');
  await page.mouse.move(0, 0);
  await shot(page, 'probe-lagging-plain');
  must(await page.locator('head noscript meta[http-equiv=refresh]').count() + await page.locator('head meta[http-equiv=refresh]').count() > 0, 'does not renew itself');
});

// --- keyboard: everything is reached, nothing is a trap -------------------------------------------------------
await check('keyboard', {}, async (page) => {
  await open(page, '/fine/probes/orders');
  await page.keyboard.press('Tab');
  must(await page.evaluate(() => document.activeElement.className === 'skip'), 'the first stop is not the skip link');
  const seen = new Set();
  for (let i = 0; i < 60; i++) {
    await page.keyboard.press('Tab');
    seen.add(await page.evaluate(() => document.activeElement.id || document.activeElement.className || document.activeElement.textContent.slice(0, 20)));
  }
  for (const id of ['config-text', 'home']) must(seen.has(id), `${id} is not reached: ${[...seen]}`);
  must([...seen].some((id) => /^b0-/.test(id)), 'the strip is not reached');
});

await browser.close();
