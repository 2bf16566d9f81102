//! Makes the seeds in `corpus/` anew: for when what is read has changed its form. Inputs that the fuzzer found stay.

use std::{fs, path::Path};

fn main() -> std::io::Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for target in romulus_fuzz::ALL {
        let folder = corpus.join(target.name);
        fs::create_dir_all(&folder)?;
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            let old = path.file_name().and_then(|name| name.to_str());
            if old.is_some_and(|name| name.starts_with(romulus_fuzz::SEED)) {
                fs::remove_file(path)?;
            }
        }
        let seeds = (target.seeds)();
        for (name, bytes) in &seeds {
            fs::write(folder.join(format!("{}{name}", romulus_fuzz::SEED)), bytes)?;
        }
        println!("{:<12} {:>3} seeds", target.name, seeds.len());
    }
    Ok(())
}
