use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use proptest::prelude::*;
use romulus_protocol::wire::Authenticator;

use super::*;

fn secret(n: u8) -> Secret {
    Secret::from_seed(&[n; 32])
}

/// Derived keys are a promise to the files that exist. The values were computed apart, from the
/// RFCs' text.
#[test]
fn a_seed_always_gives_the_same_identity() {
    let word = secret(7).public().to_string();
    assert_eq!(
        word,
        "romulus-1:ml2cgXCtNSbsQzX5K02hUXLQPGR4sAqu5xAJFr10tnBYLG7Vlb9uStXjPSXIJJiEvmsbJ1wBFmP1_wZ_AdJcQ6BgnGM"
    );
    let tag = |key: &Key| {
        let mut tag = Vec::new();
        key.tag(b"x", &mut tag);
        tag
    };
    let key = secret(7).shared(secret(8).public(), "test").expect("safe");
    assert_eq!(
        tag(&key),
        0x5872_f36d_ed70_2db3_2234_66b6_1e8d_2f02_u128.to_be_bytes()
    );
}

#[test]
fn a_file_gives_back_what_was_made() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("secret");
    let made = Secret::create(&path).expect("made");
    let permissions = fs::metadata(&path).expect("there").permissions();
    assert_eq!(permissions.mode() & 0o7777, 0o600);
    let read = Secret::load(&path).expect("read");
    assert_eq!(made.public(), read.public());
    assert_eq!(made.link(), read.link());
    let other = Secret::create(&dir.path().join("other")).expect("made");
    assert_ne!(made.public(), other.public());
    let names = fs::read_dir(dir.path()).expect("listed").count();
    assert_eq!(names, 2, "nothing but the two files is left");
}

#[test]
fn a_secret_is_never_overwritten() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("secret");
    fs::write(&path, "precious").expect("written");
    assert!(matches!(
        Secret::create(&path),
        Err(IdentityError::Exists(_))
    ));
    assert_eq!(fs::read(&path).expect("there"), b"precious");
    assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 1);
}

#[test]
fn a_file_that_others_may_read_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("secret");
    Secret::create(&path).expect("made");
    for mode in [0o640, 0o604, 0o660, 0o610] {
        fs::set_permissions(&path, Permissions::from_mode(mode)).expect("changed");
        match Secret::load(&path) {
            Err(IdentityError::Mode { mode: seen, .. }) => assert_eq!(seen, mode),
            other => panic!("{other:?}"),
        }
    }
    fs::set_permissions(&path, Permissions::from_mode(0o400)).expect("changed");
    Secret::load(&path).expect("its owner alone may read it");
}

#[test]
fn what_is_not_a_secret_is_refused_without_showing_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("secret");
    Secret::create(&path).expect("made");
    let whole = fs::read_to_string(&path).expect("read");
    let mut cases: Vec<Vec<u8>> = (0..whole.trim().len())
        .map(|length| whole.as_bytes()[..length].to_vec())
        .collect();
    cases.push(b"romulus-secret-2:AAAA".to_vec());
    cases.push(vec![0xff; 40]);
    cases.push(format!("{}AAAA", whole.trim()).into_bytes());
    cases.push(vec![b'A'; 100_000]);
    for case in cases {
        fs::write(&path, &case).expect("written");
        let error = Secret::load(&path).expect_err("refused");
        assert!(
            matches!(error, IdentityError::Malformed { .. }),
            "{error:?}"
        );
        assert!(!error.to_string().contains(&whole[20..30]));
    }
    assert!(matches!(
        Secret::load(dir.path()),
        Err(IdentityError::Malformed { .. } | IdentityError::Mode { .. })
    ));
    assert!(matches!(
        Secret::load(&dir.path().join("none")),
        Err(IdentityError::File { .. })
    ));
}

#[test]
fn printing_shows_no_secret() {
    let secret = secret(9);
    let key = secret.shared(self::secret(8).public(), "test");
    assert_eq!(format!("{:?}", key.expect("safe")), "Key");
    let printed = format!("{secret:?}");
    assert_eq!(printed, format!("Secret of {}", secret.public()));
}

#[test]
fn both_sides_share_one_key_and_nobody_else_does() {
    let (a, b, c) = (secret(1), secret(2), secret(3));
    let mut tag = Vec::new();
    let key = a.shared(b.public(), "heartbeats").expect("safe");
    key.tag(b"message", &mut tag);
    let same = b.shared(a.public(), "heartbeats").expect("safe");
    assert!(same.is_authentic(b"message", &tag));
    let others = [
        a.shared(b.public(), "arbiter"),
        a.shared(c.public(), "heartbeats"),
        c.shared(b.public(), "heartbeats"),
        Ok(Key::insecure()),
    ];
    for other in others {
        assert!(!other.expect("safe").is_authentic(b"message", &tag));
    }
    assert!(!same.is_authentic(b"massage", &tag));
    assert!(!same.is_authentic(b"message", &tag[..15]));
    assert!(!same.is_authentic(b"message", &[]));
    for bit in 0..tag.len() * 8 {
        let mut tag = tag.clone();
        tag[bit / 8] ^= 1 << (bit % 8);
        assert!(!same.is_authentic(b"message", &tag), "bit {bit}");
    }
}

/// The points of small order (RFC 7748, section 7): whatever the secret, the exchange gives zero.
#[test]
fn an_exchange_that_anybody_could_make_is_refused() {
    let mut one = [0; 32];
    one[0] = 1;
    for point in [[0; 32], one] {
        let unsafe_one = Public::new(*secret(2).public().link(), point);
        assert!(matches!(
            secret(1).shared(&unsafe_one, "test"),
            Err(IdentityError::NonContributory)
        ));
    }
}

proptest! {
    #[test]
    fn a_word_gives_back_the_identity(seed: [u8; 32]) {
        let public = *Secret::from_seed(&seed).public();
        let word = public.to_string();
        prop_assert!(!word.contains(char::is_whitespace));
        prop_assert_eq!(format!(" {word}\n").parse(), Ok(public));
    }

    #[test]
    fn a_typing_error_is_refused(at in 0_usize..101, letter in "[A-Za-z0-9_=+ -]") {
        let word = secret(5).public().to_string();
        prop_assert_eq!(word.len(), 101);
        let mut typed = word.clone();
        typed.replace_range(at..=at, &letter);
        prop_assume!(typed.trim() != word);
        prop_assert!(typed.parse::<Public>().is_err());
        typed.remove(at);
        prop_assert!(typed.parse::<Public>().is_err());
    }

    #[test]
    fn two_letters_exchanged_are_refused(at in 0_usize..100) {
        let word = secret(5).public().to_string();
        let mut typed = word.clone().into_bytes();
        typed.swap(at, at + 1);
        prop_assume!(typed != word.as_bytes());
        let typed = String::from_utf8(typed).expect("letters");
        prop_assert!(typed.parse::<Public>().is_err());
    }
}
