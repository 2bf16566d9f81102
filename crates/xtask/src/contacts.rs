//! Asks a registrar what it holds: a REGISTER without contacts, which any registrar answers with those that it has
//! (RFC 3261, section 10.2.3).

use crate::udp::{bound_to, client_socket};
use anyhow::{Result, bail};
use std::{
    collections::{BTreeMap, VecDeque},
    io::ErrorKind,
    net::{SocketAddrV4, UdpSocket},
    time::{Duration, Instant},
};

/// Questions that may wait for their answers at a time: a protected server answers in bursts, one an epoch.
const WINDOW: usize = 24;
/// After this time a question is asked again.
const AGAIN: Duration = Duration::from_secs(2);
/// How often a question is asked before the registrar counts as silent.
const TRIES: u32 = 8;

/// A question under way.
struct Asked {
    at: Instant,
    tries: u32,
}

/// Gives those of `users` whose contact the registrar does not hold.
///
/// # Errors
/// The registrar does not answer.
pub(crate) fn missing(
    client: &lab::Client,
    server: SocketAddrV4,
    users: &[String],
) -> Result<Vec<String>> {
    ask(&client_socket(client)?, server, users, AGAIN)
}

fn ask(
    socket: &UdpSocket,
    server: SocketAddrV4,
    users: &[String],
    again: Duration,
) -> Result<Vec<String>> {
    let from = bound_to(socket)?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(Duration::from_millis(20)))?;
    let mut waiting: VecDeque<usize> = (0..users.len()).collect();
    let mut asked: BTreeMap<usize, Asked> = BTreeMap::new();
    let mut missing = Vec::new();
    let mut buffer = [0; 4096];
    while !(waiting.is_empty() && asked.is_empty()) {
        while asked.len() < WINDOW
            && let Some(index) = waiting.pop_front()
        {
            send(socket, server, from, index, &users[index])?;
            let at = Instant::now();
            asked.insert(index, Asked { at, tries: 1 });
        }
        match socket.recv(&mut buffer) {
            Ok(length) => {
                let text = String::from_utf8_lossy(&buffer[..length]);
                if let Some(index) = number(&text).filter(|index| asked.contains_key(index))
                    && let Some(holds) = holds(&text, &users[index])
                {
                    asked.remove(&index);
                    if !holds {
                        missing.push(users[index].clone());
                    }
                }
            }
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                ) => {}
            // Said about an earlier datagram; that one is asked again in its time.
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
            Err(error) => return Err(error.into()),
        }
        for (index, asked) in &mut asked {
            if asked.at.elapsed() >= again {
                if asked.tries == TRIES {
                    bail!(
                        "the registrar at {server} does not answer for {}",
                        users[*index]
                    );
                }
                asked.tries += 1;
                asked.at = Instant::now();
                send(socket, server, from, *index, &users[*index])?;
            }
        }
    }
    Ok(missing)
}

fn send(
    socket: &UdpSocket,
    server: SocketAddrV4,
    from: SocketAddrV4,
    index: usize,
    user: &str,
) -> Result<()> {
    match socket.send(question(server, from, index, user).as_bytes()) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// A question about one user; its `CSeq` tells it from the others.
fn question(server: SocketAddrV4, from: SocketAddrV4, index: usize, user: &str) -> String {
    let (host, address, port) = (server.ip(), from.ip(), from.port());
    format!(
        "REGISTER sip:{host} SIP/2.0\r\n\
         Via: SIP/2.0/UDP {from};branch=z9hG4bK-ask-{port}-{index};rport\r\n\
         Max-Forwards: 70\r\n\
         To: <sip:{user}@{host}>\r\n\
         From: <sip:{user}@{host}>;tag=ask-{port}\r\n\
         Call-ID: ask-{port}-{index}@{address}\r\n\
         CSeq: {} REGISTER\r\n\
         Content-Length: 0\r\n\r\n",
        index + 1
    )
}

/// Which question an answer belongs to.
fn number(answer: &str) -> Option<usize> {
    let number: usize = header(answer, "CSeq")?
        .split_whitespace()
        .next()?
        .parse()
        .ok()?;
    number.checked_sub(1)
}

/// Whether a final answer names the user's contact; `None` for one that settles nothing. The contact need not be the same
/// to the letter (ports differ by connection), but it must be this user's.
fn holds(answer: &str, user: &str) -> Option<bool> {
    let status = answer.strip_prefix("SIP/2.0 ")?.split(' ').next()?;
    match status.parse::<u32>().ok()? {
        200 => Some(
            header(answer, "Contact")
                .is_some_and(|contact| contact.contains(&format!("<sip:{user}@"))),
        ),
        404 => Some(false),
        _ => None,
    }
}

/// The value of a header's first line.
fn header<'a>(message: &'a str, name: &str) -> Option<&'a str> {
    message
        .lines()
        .take_while(|line| !line.is_empty())
        .find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.trim().eq_ignore_ascii_case(name).then(|| value.trim())
        })
}

#[cfg(test)]
mod tests {
    use super::{ask, header, holds, number};
    use crate::udp::local;
    use std::{thread, time::Duration};

    #[test]
    fn only_the_users_own_contact_counts() {
        let answer = "SIP/2.0 200 OK\r\nCSeq: 3 REGISTER\r\nContact: <sip:u1@192.0.2.254:4000>;expires=300\r\n\r\n";
        assert_eq!(number(answer), Some(2));
        assert_eq!(holds(answer, "u1"), Some(true));
        assert_eq!(holds(answer, "u"), Some(false));
        assert_eq!(holds(answer, "u12"), Some(false));
        assert_eq!(
            holds("SIP/2.0 200 OK\r\nCSeq: 3 REGISTER\r\n\r\n", "u1"),
            Some(false)
        );
        assert_eq!(holds("SIP/2.0 503 Busy\r\n\r\n", "u1"), None);
        assert_eq!(
            header("a: 1\r\n\r\nb: 2", "b"),
            None,
            "a body holds no headers"
        );
    }

    #[test]
    fn lost_questions_are_asked_again_and_lost_contacts_are_named() {
        let (server, address) = local();
        let answering = thread::spawn(move || {
            let mut buffer = [0; 4096];
            let mut seen = 0;
            while seen < 4 {
                let (length, from) = server.recv_from(&mut buffer).unwrap();
                seen += 1;
                let question = String::from_utf8_lossy(&buffer[..length]).into_owned();
                // The first question is lost; the registrar has forgotten the second user.
                if seen == 1 {
                    continue;
                }
                let cseq = header(&question, "CSeq").unwrap();
                let contact = if question.contains("<sip:u1@") {
                    ""
                } else if question.contains("<sip:u0@") {
                    "Contact: <sip:u0@127.0.0.1:1>\r\n"
                } else {
                    "Contact: <sip:u2@127.0.0.1:1>\r\n"
                };
                let answer = format!("SIP/2.0 200 OK\r\nCSeq: {cseq}\r\n{contact}\r\n");
                server.send_to(answer.as_bytes(), from).unwrap();
            }
        });
        let users: Vec<String> = (0..3).map(|n| format!("u{n}")).collect();
        let missing = ask(&local().0, address, &users, Duration::from_millis(100)).unwrap();
        assert_eq!(missing, ["u1"]);
        answering.join().unwrap();
    }

    #[test]
    fn a_silent_registrar_is_an_error() {
        let (_silent, address) = local();
        let error = ask(&local().0, address, &["u".into()], Duration::from_millis(5)).unwrap_err();
        assert!(error.to_string().contains("does not answer"), "{error}");
    }
}
