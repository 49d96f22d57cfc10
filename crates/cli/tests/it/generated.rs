//! `completions` and `man`.

use std::process::Command;

use crate::support::{code, names, ok, text};

const COMMANDS: [&str; 21] = [
    "stats",
    "ls",
    "schemas",
    "get",
    "verify",
    "preload",
    "bench",
    "report",
    "why-miss",
    "rm",
    "compact",
    "copy",
    "merge",
    "doctor",
    "prune",
    "identities",
    "import",
    "import-torchcachex",
    "export",
    "completions",
    "man",
];

#[test]
fn completions_name_every_command_and_option() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = ok(&["completions", shell]);
        for word in COMMANDS.iter().chain(&["key-column", "f16-as-f32", "prune-unused-s", "max-value-bytes"]) {
            assert!(script.contains(word), "{shell} does not complete {word}");
        }
    }
    let (found, message) = code(&["completions", "tcsh"]);
    assert!(found == 3 && message.contains("bash"), "{message}");
}

#[test]
fn bash_completes_with_the_script() {
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("tensorcask.bash");
    std::fs::write(&script, ok(&["completions", "bash"])).unwrap();
    let complete = |words: &str| {
        let run = format!(
            "source '{}'; COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); \
             _tensorcask tensorcask \"${{COMP_WORDS[-1]}}\" \"${{COMP_WORDS[-2]}}\"; echo \"${{COMPREPLY[@]}}\"",
            text(&script)
        );
        let output = Command::new("bash").args(["--norc", "-c", &run]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    };
    assert_eq!(complete("tensorcask st"), "stats");
    assert_eq!(complete("tensorcask import --key-c"), "--key-column");
    assert_eq!(complete("tensorcask --format j"), "json");
}

#[test]
fn every_command_has_a_man_page() {
    let page = ok(&["man"]);
    assert!(page.contains(".TH tensorcask 1 ") && page.contains("Exit codes:"), "{page}");
    for command in COMMANDS {
        let name = format!("tensorcask\\-{}(1)", command.replace('-', "\\-"));
        assert!(page.contains(&name), "{name} is not in {page}");
        let page = ok(&["man", command]);
        assert!(page.contains(&format!(".TH tensorcask-{command} 1 ")), "{command}: {page}");
        assert!(page.contains("\\-\\-format") && page.contains("\\-\\-help"), "{command}: {page}");
    }
    assert!(ok(&["man", "import"]).contains("\\-\\-key\\-column"));
    let (found, message) = code(&["man", "no-such-command"]);
    assert!(found == 3 && message.contains("identities"), "{message}");
}

#[test]
fn man_pages_are_written_to_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    ok(&["man", "--dir", text(dir.path())]);
    let mut expected = COMMANDS.map(|command| format!("tensorcask-{command}.1")).to_vec();
    expected.push("tensorcask.1".into());
    expected.sort();
    assert_eq!(names(dir.path()), expected);
    for command in COMMANDS {
        let written = std::fs::read_to_string(dir.path().join(format!("tensorcask-{command}.1"))).unwrap();
        assert_eq!(written, ok(&["man", command]), "{command}");
    }
    assert_eq!(code(&["man", "--dir", text(&dir.path().join("absent"))]).0, 3);
}
