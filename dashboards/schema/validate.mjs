// node validate.mjs FILE...: holds dashboards against dashboard.ts beside it. Prints one line for each mistake; exit code 1 if
// there is one.
import fs from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { createGenerator } from 'ts-json-schema-generator';
import Ajv from 'ajv';

const here = path.dirname(fileURLToPath(import.meta.url));
const schema = createGenerator({
  path: path.join(here, 'dashboard.ts'),
  tsconfig: path.join(here, 'tsconfig.json'),
  type: 'LagMonitorDashboard',
  additionalProperties: false,
  expose: 'none', // several panels call their options Options
}).createSchema('LagMonitorDashboard');
const validate = new Ajv({ allErrors: true, strict: false }).compile(schema);

let bad = false;
for (const file of process.argv.slice(2)) {
  const dashboard = JSON.parse(fs.readFileSync(file, 'utf8'));
  if (validate(dashboard)) continue;
  bad = true;
  for (const e of validate.errors) {
    if (e.keyword === 'if') continue; // says only that what follows is wrong
    console.log(`${path.basename(file)}: ${e.instancePath} ${e.message} ${JSON.stringify(e.params)}`);
  }
}
process.exit(bad ? 1 : 0);
