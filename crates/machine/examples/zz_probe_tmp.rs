fn main() {
    let (v, c) = romulus_machine::probe::capabilities().unwrap();
    println!("{v}");
    for x in c {
        println!("{} {} {}", x.name, x.present, x.required);
    }
    let t = std::time::Instant::now();
    println!("{:?} in {:?}", romulus_machine::probe::trial(), t.elapsed());
}
