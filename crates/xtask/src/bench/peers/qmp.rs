//! QEMU's machine protocol, spoken to a QEMU in a lab host: a JSON object a line, each way.

use crate::process;
use anyhow::{Result, bail};
use lab::{Host, Remote};
use serde_json::{Value, json};
use std::time::Duration;

/// How long an answer may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// From one look for an answer to the next.
const LOOK: Duration = Duration::from_millis(2);

/// A conversation.
pub(super) struct Qmp {
    socat: Remote,
    asked: u64,
}

impl Qmp {
    /// Opens the conversation at a socket in the host, once it is there.
    ///
    /// # Errors
    /// Nobody answers there.
    pub(super) fn open(host: &Host, socket: &str) -> Result<Self> {
        let script = format!(
            "i=0; until [ -S {socket} ]; do i=$((i+1)); [ $i -lt 100 ] || exit 1; usleep 100000; done; \
             exec socat - UNIX-CONNECT:{socket}"
        );
        let mut qmp = Self {
            socat: host.spawn(&["sh", "-c", &script])?,
            asked: 0,
        };
        qmp.execute("qmp_capabilities", &json!({"enable": ["oob"]}))?;
        Ok(qmp)
    }

    /// Executes a command and gives what it returns.
    ///
    /// # Errors
    /// QEMU refuses, or has ended.
    pub(super) fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        self.ask("execute", command, arguments)
    }

    /// The same out of band, which works while QEMU waits for something.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub(super) fn execute_at_once(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        self.ask("exec-oob", command, arguments)
    }

    fn ask(&mut self, how: &str, command: &str, arguments: &Value) -> Result<Value> {
        self.asked += 1;
        let id = self.asked;
        self.socat
            .input(request(how, command, arguments, id).as_bytes())?;
        let answer = process::poll(ANSWER_WITHIN, LOOK, || {
            if let Some(answer) = answer(&self.socat.output(), id) {
                return Ok(Some(answer));
            }
            if let Some(status) = self.socat.status() {
                bail!("the way to QEMU ended with {status}");
            }
            Ok(None)
        })?;
        match answer {
            Some(Ok(value)) => Ok(value),
            Some(Err(refusal)) => bail!("QEMU refuses {command}: {refusal}"),
            None => bail!(
                "QEMU does not answer to {command} within {} s",
                ANSWER_WITHIN.as_secs()
            ),
        }
    }
}

/// A command's line; `how` is `execute`, or `exec-oob` for out of band.
fn request(how: &str, command: &str, arguments: &Value, id: u64) -> String {
    let object = json!({how: command, "arguments": arguments, "id": id});
    format!("{object}\n")
}

/// The answer of this number among all that came, events and a last line that is not whole among them.
fn answer(came: &[u8], id: u64) -> Option<Result<Value, String>> {
    String::from_utf8_lossy(came).lines().find_map(|line| {
        let mut value: Value = serde_json::from_str(line).ok()?;
        if value["id"] != id {
            return None;
        }
        Some(match value.get_mut("error") {
            Some(error) => Err(error["desc"].as_str().unwrap_or("no reason").to_owned()),
            None => Ok(value["return"].take()),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::{answer, request};
    use serde_json::{Value, json};

    #[test]
    fn a_command_is_one_line_that_says_how_it_is_to_be_done() {
        let line = request("exec-oob", "yank", &json!({"instances": []}), 7);
        assert_eq!(line.matches('\n').count(), 1);
        let object: Value = serde_json::from_str(&line).unwrap();
        let expected = json!({"exec-oob": "yank", "arguments": {"instances": []}, "id": 7});
        assert_eq!(object, expected);
    }

    #[test]
    fn answers_are_told_by_their_number() {
        let came = br#"{"QMP": {"version": {}}}
{"return": {}, "id": 1}
{"event": "STOP", "timestamp": {}}
{"id": 2, "error": {"class": "GenericError", "desc": "not now"}}
{"return": {"mode": "primary"}, "id": 3}
{"return": {"mo"#;
        assert_eq!(answer(came, 1), Some(Ok(json!({}))));
        assert_eq!(answer(came, 2), Some(Err("not now".into())));
        assert_eq!(answer(came, 3), Some(Ok(json!({"mode": "primary"}))));
        assert_eq!(answer(came, 4), None);
    }
}
