// Starts `mccompile lsp` for .policy files.
const { workspace } = require("vscode");
const { LanguageClient } = require("vscode-languageclient/node");

let client;

function activate() {
  const [command, ...args] = workspace.getConfiguration("mccompile").get("command");
  client = new LanguageClient("mccompile", "mccompile", { command, args }, { documentSelector: [{ language: "policy" }] });
  return client.start();
}

function deactivate() {
  return client === undefined ? undefined : client.stop();
}

module.exports = { activate, deactivate };
