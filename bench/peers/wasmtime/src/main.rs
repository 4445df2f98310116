//! Wasmtime, in each of the ways that its pooling allocator has to recycle a
//! memory, and on firsttouch's pool (features `firsttouch`).

#[path = "../../peer.rs"]
mod peer;

mod api {
    use crate::peer::{Sizes, wasi};
    use wasmtime::{
        Config, Enabled, Engine, ExternType, Instance, InstanceAllocationStrategy, InstancePre,
        Linker, Module, PoolingAllocationConfig, Store,
    };

    /// The slots that are decommitted together where they are.
    const BATCH: u32 = 16;

    pub struct Supply {
        engine: Engine,
        #[cfg(feature = "firsttouch")]
        pool: Option<firsttouch_wasmtime::Pool>,
    }

    impl Supply {
        pub fn new(way: &str, sizes: &Sizes) -> Supply {
            let mut config = Config::new();
            #[cfg(feature = "firsttouch")]
            if way == "firsttouch" {
                let pool = firsttouch_wasmtime::Pool::new(&firsttouch_wasmtime::PoolOptions {
                    memories: sizes.slots,
                    max_memory_bytes: sizes.max_memory_bytes as u64,
                    ..Default::default()
                })
                .unwrap();
                pool.configure(&mut config);
                return Supply {
                    engine: Engine::new(&config).unwrap(),
                    pool: Some(pool),
                };
            }
            // A batch is as large as it is named only if slots can wait for it.
            let slots = sizes.slots + if way == "batch" { 2 * BATCH } else { 0 };
            let mut pooling = PoolingAllocationConfig::new();
            pooling
                .total_core_instances(2 * slots)
                .total_memories(slots)
                .total_tables(slots)
                .table_elements(sizes.table_elements as usize)
                .max_unused_warm_slots(sizes.slots)
                .max_memory_size(sizes.max_memory_bytes);
            match way {
                "default" => {}
                "batch" => {
                    pooling.decommit_batch_size(BATCH as usize);
                }
                "keep" | "scan" => {
                    pooling
                        .linear_memory_keep_resident(sizes.kept_bytes)
                        .table_keep_resident(1 << 20)
                        .pagemap_scan(if way == "scan" {
                            Enabled::Yes
                        } else {
                            Enabled::No
                        });
                }
                _ => panic!("{way}: there is no such way"),
            }
            config.allocation_strategy(InstanceAllocationStrategy::Pooling(pooling));
            Supply {
                engine: Engine::new(&config).unwrap(),
                #[cfg(feature = "firsttouch")]
                pool: None,
            }
        }

        pub fn engine(&self) -> &Engine {
            &self.engine
        }

        pub fn describe(&self) -> String {
            #[cfg(feature = "firsttouch")]
            if let Some(pool) = &self.pool {
                return pool.describe().unwrap();
            }
            String::new()
        }

        pub fn app(&self, wasm: &[u8]) -> App {
            #[cfg(feature = "firsttouch")]
            if self.pool.is_some() {
                let split = firsttouch_wasmtime::split("peer", wasm).unwrap();
                let module = Module::from_binary(&self.engine, &split.module).unwrap();
                let images: Vec<_> = split.images.into_iter().map(|made| made.image).collect();
                let pre = prepare(&self.engine, &module);
                return App::OnPool(firsttouch_wasmtime::Instantiator::new(pre, &images).unwrap());
            }
            App::Own(prepare(
                &self.engine,
                &Module::from_binary(&self.engine, wasm).unwrap(),
            ))
        }
    }

    fn prepare(engine: &Engine, module: &Module) -> InstancePre<()> {
        let mut linker = Linker::new(engine);
        for import in module.imports() {
            let ExternType::Func(ty) = import.ty() else {
                panic!("{} is no function", import.name());
            };
            let name = import.name().to_string();
            linker
                .func_new(
                    import.module(),
                    import.name(),
                    ty,
                    move |caller, parameters, results| {
                        wasi(&name, caller, parameters, results);
                        Ok(())
                    },
                )
                .unwrap();
        }
        linker.instantiate_pre(module).unwrap()
    }

    pub enum App {
        Own(InstancePre<()>),
        #[cfg(feature = "firsttouch")]
        OnPool(firsttouch_wasmtime::Instantiator<()>),
    }

    impl App {
        pub fn instantiate(&self, store: &mut Store<()>) -> Instance {
            match self {
                App::Own(pre) => pre.instantiate(store).unwrap(),
                #[cfg(feature = "firsttouch")]
                App::OnPool(instantiator) => instantiator.instantiate(store).unwrap(),
            }
        }
    }
}

fn main() {
    peer::main();
}
