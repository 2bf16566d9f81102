//! Who knows a partner's public key is not yet the partner.

use super::*;

fn secret(seed: u8) -> Secret {
    Secret::from_seed(&[seed; 32])
}

/// Both sides' handshake, in memory: how it ends for each.
fn meet(client: &Tls, server: &Tls) -> [Result<(), Error>; 2] {
    let mut sides = [client.client().unwrap(), server.server().unwrap()];
    let mut ends = [Ok(()), Ok(())];
    // Far more turns than a handshake takes.
    for turn in 0..20 {
        let [one, other] = &mut sides;
        let (from, to) = if turn % 2 == 0 {
            (one, other)
        } else {
            (other, one)
        };
        let mut bytes = Vec::new();
        while from.wants_write() {
            from.write_tls(&mut bytes).unwrap();
        }
        let mut bytes = &bytes[..];
        while !bytes.is_empty() && ends[1 - turn % 2].is_ok() {
            to.read_tls(&mut bytes).unwrap();
            ends[1 - turn % 2] = to.process_new_packets().map(drop);
        }
    }
    if ends.iter().all(Result::is_ok) {
        assert!(sides.iter().all(|side| !side.is_handshaking()));
    }
    ends
}

#[test]
fn a_public_key_alone_opens_nothing() {
    let (alba, berta) = (secret(1), secret(2));
    let ours = Tls::new(&alba, berta.public()).unwrap();
    let theirs = Tls::new(&berta, alba.public()).unwrap();
    assert_eq!(meet(&ours, &theirs), [Ok(()), Ok(())]);
    assert_eq!(meet(&theirs, &ours), [Ok(()), Ok(())]);
    // It presents the partner's key, and can sign with another one only.
    let stranger = identity(&secret(3), berta.public()).unwrap();
    let stranger = Tls::with(stranger, alba.public()).unwrap();
    let [found, _] = meet(&ours, &stranger);
    assert!(found.is_err());
    let [_, found] = meet(&stranger, &ours);
    assert!(found.is_err());
}
