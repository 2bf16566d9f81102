//! The arbiter's store: files of a directory, damaged, foreign or half-written.
//!
//! The input is a row of files. Each is a byte that says how it is to be named and whether its checksum is made right, then
//! a name (where it is used) and a content, each with its length in front.

use crate::{
    input::{Input, piece},
    memory::bounded,
    wire,
};
use romulus_engine::arbiter::fuzzing::{Files, open};
use romulus_protocol::{
    record::Record,
    wire::{decode_record, encode_record},
};

/// Files looked at; more show nothing new.
const FILES_MAX: usize = 16;
/// The longest name of a file, in bytes.
const NAME_MAX: usize = 255;
/// The content's checksum is made right.
const SEALED: u8 = 1;
/// The file is called what a record with this content is called, not by the name that follows.
const NAMED: u8 = 2;
/// It is called as a draft.
const DRAFT: u8 = 4;

/// Opens a store of the files, twice.
///
/// # Panics
/// A promise is broken.
pub fn body(bytes: &[u8]) {
    let files = files(bytes);
    let size = |(name, content): (&String, &Vec<u8>)| 4 * name.len() + content.len();
    let most = files.iter().map(size).sum::<usize>() + 512 * files.len();
    // The copy goes where the store's files are.
    let copy = files.clone();
    let opened = bounded(2 * most, || open(copy, &[]));
    let expected = expected(&files);
    let Ok((records, after)) = opened else {
        assert_eq!(expected, None, "a good store was refused: {opened:?}");
        return;
    };
    assert_eq!(Some(&records), expected.as_ref());
    // Drafts go, nothing else changes.
    let mut rest = files;
    rest.retain(|name, _| name.strip_suffix(".draft").is_none());
    assert_eq!(after, rest);
    // What is stored again is the same bytes, and is read as the same records.
    let (_, stored) = open(Files::new(), &records).expect("an empty store is one");
    rest.retain(|name, _| name != "lock");
    assert_eq!(stored, rest);
    let again = open(stored, &[]).expect("what a store wrote it reads");
    assert_eq!(again.0, records);
}

/// What a store of these files holds, found in another way than the store does; nothing where it has to refuse them.
fn expected(files: &Files) -> Option<Vec<Record>> {
    let mut records = Vec::new();
    for (name, content) in files {
        match name.rsplit_once('.') {
            None if name == "lock" => {}
            Some((machine, "draft")) if is_uuid(machine) => {}
            Some((machine, "record")) if is_uuid(machine) => {
                // A record is read up to a limit that is far longer than any.
                let record = decode_record(content).ok()?;
                if record.machine.to_string() != machine {
                    return None;
                }
                records.push(record);
            }
            _ => return None,
        }
    }
    Some(records)
}

fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
        })
}

fn files(bytes: &[u8]) -> Files {
    let mut input = Input::new(bytes);
    let mut files = Files::new();
    while !input.is_empty() && files.len() < FILES_MAX {
        let how = input.byte();
        let mut name = String::from_utf8_lossy(input.piece()).into_owned();
        let mut content = input.piece().to_vec();
        if how & SEALED != 0 {
            content = wire::seal(&content);
        }
        if how & NAMED != 0
            && let Ok(record) = decode_record(&content)
        {
            name = format!("{}.record", record.machine);
        }
        if how & DRAFT != 0 {
            name = name.replace(".record", ".draft");
        }
        // As a directory's names are.
        if (1..=NAME_MAX).contains(&name.len()) {
            files.insert(name, content);
        }
    }
    files
}

fn file(how: u8, name: &str, content: &[u8]) -> Vec<u8> {
    [vec![how], piece(name.as_bytes()), piece(content)].concat()
}

/// Stores that are good, and such with one fault.
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let encoded = |machine, heir| {
        let mut out = Vec::new();
        encode_record(&wire::record(machine, heir), &mut out);
        out
    };
    let (first, second) = (encoded(7, None), encoded(8, Some(0xb2)));
    let name =
        |machine: u128, kind: &str| format!("{}.{kind}", wire::record(machine, None).machine);
    let cut = &first[..first.len() - 5];
    let stores: [(&str, Vec<Vec<u8>>); 9] = [
        ("empty", vec![]),
        ("lock", vec![file(0, "lock", &[])]),
        (
            "two",
            vec![
                file(0, "lock", &[]),
                file(0, &name(7, "record"), &first),
                file(0, &name(8, "record"), &second),
            ],
        ),
        (
            "draft",
            vec![
                file(0, &name(7, "record"), &first),
                file(0, &name(7, "draft"), cut),
            ],
        ),
        ("cut", vec![file(0, &name(7, "record"), cut)]),
        ("misplaced", vec![file(0, &name(8, "record"), &first)]),
        ("foreign", vec![file(0, "notes.txt", b"hello")]),
        (
            "capitals",
            vec![file(
                0,
                &name(0xa, "record").to_uppercase(),
                &encoded(0xa, None),
            )],
        ),
        (
            "sealed",
            vec![
                file(SEALED | NAMED, "", &first),
                file(SEALED | NAMED, "", &second),
                file(SEALED | NAMED | DRAFT, "", &second),
            ],
        ),
    ];
    let seed = |(name, files): (&str, Vec<Vec<u8>>)| (name.to_owned(), files.concat());
    stores.map(seed).into()
}
