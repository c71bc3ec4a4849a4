"""What kernels take and could take, from their compiled code and the chips' data sheets: needs no GPU."""
