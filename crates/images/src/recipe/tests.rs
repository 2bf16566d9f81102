//! Tests of recipes, among them those of the project.

use super::*;

const GOOD: &str = "name = \"x\"\nsummary = \"s\"\n";

fn read(text: &str) -> Result<Recipe, RecipeError> {
    let guests = tempfile::tempdir().unwrap();
    fs::create_dir(guests.path().join("x")).unwrap();
    fs::write(guests.path().join("x/recipe.toml"), text).unwrap();
    fs::write(guests.path().join("x/own"), "content").unwrap();
    Recipe::read(guests.path(), "x")
}

fn error(more: &str) -> String {
    let error = read(&format!("{GOOD}{more}")).unwrap_err().to_string();
    let (directory, text) = error.split_once("recipe.toml").unwrap();
    assert!(directory.ends_with("x/"), "{error}");
    text.to_owned()
}

#[test]
fn a_small_recipe_is_read() {
    let text = format!(
        "{GOOD}memory = \"1 GiB\"\n[[file]]\npath = \"/etc/own\"\nsource = \"own\"\nmode = \"0600\"\n"
    );
    let recipe = read(&text).unwrap();
    assert_eq!(recipe.memory_mib, 1024);
    assert_eq!(
        recipe.files,
        [OwnFile {
            path: "/etc/own".into(),
            mode: 0o600,
            content: b"content".to_vec()
        }]
    );
}

#[test]
fn errors_name_file_line_and_key() {
    let text = error("packges = []\n");
    assert!(
        text.contains("line 3") && text.contains("packges") && text.contains("`packages`"),
        "{text}"
    );
    let text = error("memory = 512\n");
    assert!(
        text.contains("line 3") && text.contains("memory = 512"),
        "{text}"
    );
    assert_eq!(
        error("memory = \"512\"\n"),
        ":3: memory: \"512\" must be a size such as \"512 MiB\" or \"1 GiB\""
    );
    assert!(
        error("[[file]]\npath = \"etc/x\"\nsource = \"own\"\n")
            .starts_with(":4: file.path: \"etc/x\" must be")
    );
    assert!(
        error("[[file]]\npath = \"/x\"\nsource = \"gone\"\n")
            .starts_with(":5: file.source: cannot read \"gone\"")
    );
    assert!(
        error("[[file]]\npath = \"/x\"\nsource = \"../x\"\n")
            .starts_with(":5: file.source: \"../x\" must be")
    );
    assert!(
        error("[[file]]\npath = \"/x\"\nsource = \"own\"\nmode = \"9\"\n")
            .starts_with(":6: file.mode: \"9\"")
    );
    assert!(
        error("packages = [\n  \"a\",\n  \"-o\",\n]\n")
            .starts_with(":5: packages: \"-o\" must begin")
    );
    assert!(error("base = [\"../x\"]\n").starts_with(":3: base: \"../x\" must begin"));
    assert!(error("base = 1\n").contains("expected the name of a recipe"));
    assert!(error("base = \"x\"\n").starts_with(":3: base: goes round in a circle: x"));
}

#[test]
fn a_recipe_that_is_not_there_brings_up_those_that_are() {
    let guests = tempfile::tempdir().unwrap();
    fs::create_dir(guests.path().join("x")).unwrap();
    fs::write(guests.path().join("x/recipe.toml"), GOOD).unwrap();
    let error = Recipe::read(guests.path(), "y").unwrap_err().to_string();
    assert!(error.ends_with("(there are: x)"), "{error}");
}

#[test]
fn what_the_base_says_comes_first_and_is_replaced_or_extended() {
    let guests = tempfile::tempdir().unwrap();
    for (name, text) in [
        (
            "a",
            "name = \"a\"\nsummary = \"A\"\nmemory = \"64 MiB\"\ncommand_line = \"quiet\"\npackages = [\"p\"]\n",
        ),
        (
            "b",
            "name = \"b\"\nbase = \"a\"\nsummary = \"B\"\nmemory = \"1 GiB\"\npackages = [\"q\"]\n",
        ),
    ] {
        fs::create_dir(guests.path().join(name)).unwrap();
        fs::write(guests.path().join(name).join("recipe.toml"), text).unwrap();
    }
    let recipe = Recipe::read(guests.path(), "b").unwrap();
    assert_eq!(
        (recipe.memory_mib, recipe.command_line.as_str()),
        (1024, "quiet")
    );
    assert_eq!(recipe.packages, ["p", "q"]);
}

#[test]
fn a_base_that_several_bases_share_is_taken_once() {
    let guests = tempfile::tempdir().unwrap();
    for (name, base) in [
        ("a", ""),
        ("b", "base = \"a\"\n"),
        ("c", "base = \"a\"\n"),
        ("d", "base = [\"b\", \"c\"]\n"),
    ] {
        let text = format!("name = \"{name}\"\nsummary = \"s\"\n{base}packages = [\"{name}\"]\n");
        fs::create_dir(guests.path().join(name)).unwrap();
        fs::write(guests.path().join(name).join("recipe.toml"), text).unwrap();
    }
    let recipe = Recipe::read(guests.path(), "d").unwrap();
    assert_eq!(recipe.packages, ["a", "b", "c", "d"]);
    assert_eq!(recipe.name, "d");
}

#[test]
fn a_wheel_needs_whole_digests() {
    let wheel = |digest: &str| {
        format!("[[wheel]]\npackage = \"rtp.io\"\nversion = \"1.1.1\"\nsha256 = [\"{digest}\"]\n")
    };
    let digest = "0a".repeat(32);
    let recipe = read(&format!("{GOOD}{}", wheel(&digest))).unwrap();
    assert_eq!(recipe.wheels[0].sha256, [digest]);
    for wrong in ["0a", &"0A".repeat(32)] {
        assert_eq!(
            error(&wheel(wrong)),
            format!(":6: wheel.sha256: \"{wrong}\" must be 64 digits 0-9 a-f")
        );
    }
    assert!(error(&wheel("").replace("[\"\"]", "[]")).starts_with(":6: wheel.sha256: needs"));
}

#[test]
fn the_recipes_of_the_project_are_sound() {
    let guests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../guests");
    let names = names_in(&guests);
    assert!(names.iter().any(|n| n == "registrar"), "{names:?}");
    for name in names {
        let recipe = Recipe::read(&guests, &name).unwrap();
        assert!(
            !recipe.disk_init.is_empty() && recipe.programs.len() > 1,
            "{name}"
        );
    }
}
