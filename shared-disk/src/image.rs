use crate::request::{DiskRequest, DiskOp}; use std::os::unix::fs::FileExt;
#[derive(Clone,Copy)] pub enum Access{ReadOnly,ReadWrite} #[derive(Clone,Copy)] pub enum Caching{Direct,Buffered}
#[derive(Debug)] pub struct Image{f:std::fs::File}
pub enum Status{Ok,IoError,Unsupported}
impl Image{ pub fn open(p:&std::path::Path,a:Access,_c:Caching)->std::io::Result<Image>{Ok(Image{f:std::fs::OpenOptions::new().read(true).write(matches!(a,Access::ReadWrite)).open(p)?})}
pub fn size(&self)->u64{self.f.metadata().unwrap().len()}
pub fn execute(&self,r:&DiskRequest)->(Status,Vec<u8>){match &r.op{DiskOp::Read{offset,len}=>{let mut b=vec![0;*len as usize];self.f.read_exact_at(&mut b,*offset).unwrap();(Status::Ok,b)}DiskOp::Write{offset,data}=>{self.f.write_all_at(data,*offset).unwrap();(Status::Ok,vec![])}DiskOp::Flush=>{self.f.sync_data().unwrap();(Status::Ok,vec![])}}}}
