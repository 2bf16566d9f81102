//! A softphone at the lab's client: baresip without a sound card, told what to do over its control connection (module
//! `ctrl_tcp`: JSON in netstrings). It is the other party to DTLS-SRTP (RFC 5764) that no line of ours has written.

use crate::{process, sipp};
use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;
use std::{
    fs::{self, File},
    io::{ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::Path,
    process::{Child, Stdio},
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// How long it may take to start, or to answer a command.
const SOON: Duration = Duration::from_secs(20);
/// How often it is asked whether something is so.
const LOOK: Duration = Duration::from_millis(200);
/// Samples a second of G.711.
const RATE: u32 = 8000;
/// How long it can speak before what it says is over, in seconds.
const SPEECH_SECONDS: u32 = 600;
/// The longest message that its control connection may bring.
const LONGEST: usize = 1 << 20;

/// A softphone that runs. Dropping it ends it.
pub(crate) struct Softphone {
    name: String,
    child: Child,
    control: TcpStream,
    /// The UDP ports of its media: first and last.
    media_ports: (u16, u16),
    /// What the control connection brought and was not looked at yet.
    input: Vec<u8>,
    folder: TempDir,
}

/// How a softphone's media go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Media {
    /// As RTP.
    Plain,
    /// As SRTP with keys that DTLS agrees on.
    Encrypted,
}

/// What a softphone's audio stream is like.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Audio {
    /// Whether it is encrypted.
    pub(crate) secure: bool,
    /// How many seconds of sound were decoded.
    pub(crate) received: f64,
}

/// A message of the control connection.
#[derive(Debug, Deserialize)]
struct Answer {
    #[serde(default)]
    response: bool,
    #[serde(default)]
    ok: bool,
    #[serde(default)]
    data: String,
}

impl Softphone {
    /// Starts the softphone of `user`, which registers at `server` and takes every call. `tree` holds baresip with all that it
    /// needs.
    ///
    /// # Errors
    /// It does not start.
    pub(crate) fn start(
        client: &lab::Client,
        tree: &Path,
        server: Ipv4Addr,
        user: &str,
        media: Media,
    ) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("romulus-softphone-")
            .tempdir()?;
        let address = client.address();
        let control = SocketAddr::from((address, sipp::port()));
        let sip = sipp::port();
        // It takes the next one, too, for SIP over TLS.
        sipp::port();
        let speech = folder.path().join("speech.wav");
        fs::write(&speech, tone())?;
        let (low, high) = media_ports();
        let config = format!(
            "sip_listen {address}:{sip}\n\
             ctrl_tcp_listen {control}\n\
             rtp_ports {low}-{high}\n\
             audio_source aufile,{speech}\n\
             audio_player aufile,{received}\n\
             audio_alert aufile,/dev/null\n\
             ausrc_srate {RATE}\nauplay_srate {RATE}\nausrc_channels 1\nauplay_channels 1\n\
             module_path {modules}\n\
             module g711.so\nmodule aufile.so\nmodule dtls_srtp.so\nmodule debug_cmd.so\n\
             module_tmp account.so\nmodule_app menu.so\nmodule_app ctrl_tcp.so\n",
            speech = speech.display(),
            received = folder.path().join("received.wav").display(),
            modules = tree.join("usr/lib/baresip/modules").display(),
        );
        fs::write(folder.path().join("config"), config)?;
        let encryption = match media {
            Media::Plain => "",
            Media::Encrypted => ";mediaenc=dtls_srtp",
        };
        let account = format!(
            "<sip:{user}@{server}>;regint=600{encryption};audio_codecs=PCMU/8000/1;answermode=auto\n"
        );
        fs::write(folder.path().join("accounts"), account)?;
        let libraries = tree.join("usr/lib/x86_64-linux-gnu");
        // Its own loader and libraries: this computer's may be others.
        let mut child = client
            .command(&libraries.join("ld-linux-x86-64.so.2").to_string_lossy())?
            .arg("--library-path")
            .arg(&libraries)
            .arg(tree.join("usr/bin/baresip"))
            .arg("-f")
            .arg(folder.path())
            .arg("-p")
            .arg(tree.join("usr/share/baresip"))
            .stdin(Stdio::null())
            .stdout(File::create(folder.path().join("output"))?)
            .stderr(File::create(folder.path().join("errors"))?)
            .spawn()
            .context("running baresip")?;
        let connected = process::poll(SOON, Duration::from_millis(20), || {
            if let Some(status) = child.try_wait()? {
                let said = fs::read_to_string(folder.path().join("output")).unwrap_or_default();
                bail!("baresip ended with {status}: {}", said.trim());
            }
            match client.connect(control) {
                Ok(control) => Ok(Some(control)),
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(None),
                Err(error) => Err(error.into()),
            }
        });
        match connected {
            Ok(Some(control)) => Ok(Self {
                name: user.to_owned(),
                child,
                control,
                media_ports: (low, high),
                input: Vec::new(),
                folder,
            }),
            other => {
                process::kill(&mut child);
                other?;
                bail!("baresip does not open its control connection")
            }
        }
    }

    /// Waits until it is registered.
    ///
    /// # Errors
    /// It is not in time.
    pub(crate) fn wait_registered(&mut self, limit: Duration) -> Result<()> {
        let mut last = String::new();
        process::poll(limit, LOOK, || {
            last = self.command("reginfo", "")?;
            Ok(registered(&last).then_some(()))
        })?
        .with_context(|| format!("{} does not register: {}", self.name, last.trim()))
    }

    /// Calls a user of the same server.
    ///
    /// # Errors
    /// It does not answer, or refuses.
    pub(crate) fn dial(&mut self, server: Ipv4Addr, user: &str) -> Result<()> {
        self.command("dial", &format!("sip:{user}@{server}"))
            .map(drop)
    }

    /// Ends the call.
    ///
    /// # Errors
    /// It does not answer, or refuses.
    pub(crate) fn hang_up(&mut self) -> Result<()> {
        self.command("hangup", "").map(drop)
    }

    /// What the call's audio is like; `None` if there is no call.
    ///
    /// # Errors
    /// It does not answer.
    pub(crate) fn audio(&mut self) -> Result<Option<Audio>> {
        Ok(audio(&self.command("audio_debug", "")?))
    }

    /// Waits until the call's audio is as wanted.
    ///
    /// # Errors
    /// It is not within `limit`; `what` names it.
    pub(crate) fn wait_audio(
        &mut self,
        what: &str,
        limit: Duration,
        wanted: impl Fn(Option<Audio>) -> bool,
    ) -> Result<()> {
        let mut last = None;
        process::poll(limit, LOOK, || {
            last = self.audio()?;
            Ok(wanted(last).then_some(()))
        })?
        .with_context(|| {
            format!(
                "{}'s audio is not {what} within {} s but {last:?}: {}",
                self.name,
                limit.as_secs(),
                self.said()
            )
        })
    }

    /// The end of what it has printed.
    fn said(&self) -> String {
        let said = fs::read(self.folder.path().join("output")).unwrap_or_default();
        let end = &said[said.len().saturating_sub(2000)..];
        String::from_utf8_lossy(end).trim().to_owned()
    }

    /// Gives a command and waits for what it says to it.
    fn command(&mut self, command: &str, parameters: &str) -> Result<String> {
        let request = serde_json::json!({"command": command, "params": parameters}).to_string();
        write!(self.control, "{}:{request},", request.len())
            .with_context(|| format!("commanding {}'s softphone", self.name))?;
        let deadline = Instant::now() + SOON;
        loop {
            while let Some(message) = netstring(&mut self.input)? {
                let answer: Answer = serde_json::from_slice(&message).with_context(|| {
                    format!("baresip said {}", String::from_utf8_lossy(&message))
                })?;
                // Between the answers there are events, which nobody here waits for.
                if answer.response {
                    ensure!(answer.ok, "baresip refuses {command:?}: {}", answer.data);
                    return Ok(answer.data);
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "baresip does not answer {command:?}");
            self.control.set_read_timeout(Some(left))?;
            let mut bytes = [0; 4096];
            match self.control.read(&mut bytes) {
                Ok(0) => bail!("{}'s softphone has ended: {}", self.name, self.said()),
                Ok(length) => self.input.extend_from_slice(&bytes[..length]),
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                    ) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// What tcpdump calls the media of this phone, and nobody else's.
    pub(crate) fn media_filter(&self) -> String {
        let (low, high) = self.media_ports;
        format!("portrange {low}-{high}")
    }
}

impl Drop for Softphone {
    fn drop(&mut self) {
        process::kill(&mut self.child);
    }
}

/// UDP ports that no other softphone of this process uses: first and last.
fn media_ports() -> (u16, u16) {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let low = 10_000 + NEXT.fetch_add(1, Ordering::Relaxed) % 90 * 100;
    (low, low + 99)
}

/// Something to say: a tone of 400 Hz, as a WAV file.
fn tone() -> Vec<u8> {
    let period: Vec<u8> = (0..20)
        .map(|n| f64::from(n) * std::f64::consts::TAU / 20.0)
        .flat_map(|angle| {
            #[allow(clippy::cast_possible_truncation, reason = "far below the limit")]
            let sample = (angle.sin() * 8000.0) as i16;
            sample.to_le_bytes()
        })
        .collect();
    let samples = SPEECH_SECONDS * RATE;
    let bytes = samples * 2;
    let mut wav = Vec::new();
    wav.extend(b"RIFF");
    wav.extend((36 + bytes).to_le_bytes());
    wav.extend(b"WAVEfmt ");
    wav.extend(16_u32.to_le_bytes());
    // Linear samples, one channel.
    wav.extend([1, 0, 1, 0]);
    wav.extend(RATE.to_le_bytes());
    wav.extend((RATE * 2).to_le_bytes());
    // Bytes and bits of a sample.
    wav.extend([2, 0, 16, 0]);
    wav.extend(b"data");
    wav.extend(bytes.to_le_bytes());
    for _ in 0..samples / 20 {
        wav.extend(&period);
    }
    wav
}

/// Takes the first netstring (`LENGTH:BYTES,`) off the input, if it is there whole.
fn netstring(input: &mut Vec<u8>) -> Result<Option<Vec<u8>>> {
    let Some(colon) = input.iter().position(|byte| *byte == b':') else {
        ensure!(input.len() < 10, "no netstring");
        return Ok(None);
    };
    let length: usize = std::str::from_utf8(&input[..colon])?
        .parse()
        .context("a netstring without a length")?;
    ensure!(length <= LONGEST, "a netstring of {length} bytes");
    let end = colon + 1 + length;
    let Some(last) = input.get(end) else {
        return Ok(None);
    };
    ensure!(*last == b',', "a netstring without an end");
    let message = input[colon + 1..end].to_vec();
    input.drain(..=end);
    Ok(Some(message))
}

/// Whether what `reginfo` prints is of a registered user: `> AOR OK Expires …`, with colours.
fn registered(text: &str) -> bool {
    text.lines()
        .any(|line| line.starts_with('>') && line.contains("OK "))
}

/// Reads what `audio_debug` prints; `None` if it is of no stream.
fn audio(text: &str) -> Option<Audio> {
    let receiving = text.split_once("\n rx:")?.1;
    let time = receiving.split_once("time = ")?.1.split(' ').next()?;
    Some(Audio {
        secure: text.contains("(secure=yes)"),
        received: time.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::{Audio, audio, netstring, registered, tone};

    #[test]
    fn netstrings_come_in_pieces_and_together() {
        let mut input = b"3:abc,2:d".to_vec();
        assert_eq!(netstring(&mut input).unwrap(), Some(b"abc".to_vec()));
        assert_eq!(netstring(&mut input).unwrap(), None);
        input.extend(b"e,");
        assert_eq!(netstring(&mut input).unwrap(), Some(b"de".to_vec()));
        assert!(input.is_empty());
        assert!(netstring(&mut b"2:abc".to_vec()).is_err());
        assert!(netstring(&mut b"x:abc,".to_vec()).is_err());
        assert!(netstring(&mut b"no length at all".to_vec()).is_err());
        assert!(netstring(&mut b"99999999:".to_vec()).is_err());
    }

    #[test]
    fn only_a_registered_user_is_registered() {
        let text = |state| {
            format!(
                "\n--- User Agents (1) ---\n> sip:a@192.0.2.100   \u{1b}[{state} \u{1b}[;m  Expires 600s\n\n"
            )
        };
        assert!(registered(&text("32mOK")));
        assert!(!registered(&text("33mzzz")));
        assert!(!registered(&text("31mERR")));
    }

    #[test]
    fn the_time_of_what_was_received_is_read() {
        let text = "\n--- Audio stream ---\n tx:   encode: PCMU\n       time = 4.900 sec\n rx:   decode: PCMU\n       \
                    time = 4.799 sec\n menc: dtls_srtp (secure=yes)\n";
        let expected = Audio {
            secure: true,
            received: 4.799,
        };
        assert_eq!(audio(text), Some(expected));
        assert_eq!(audio("no active call"), None);
    }

    #[test]
    fn the_tone_is_as_long_as_its_header_says() {
        let wav = tone();
        let said = u32::from_le_bytes(wav[40..44].try_into().unwrap());
        assert_eq!(wav.len(), 44 + said as usize);
    }
}
