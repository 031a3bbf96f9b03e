variable "bucket" {
  description = "Name of the bucket for data, models and artifacts."
  type        = string
  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$", var.bucket))
    error_message = "Want 3 to 63 lower-case letters, digits and hyphens."
  }
}

variable "region" {
  description = "AWS region of the bucket."
  type        = string
}

variable "prefix" {
  description = "Keys of the project start with this, without slashes at its ends."
  type        = string
  default     = "emuedit"
}

variable "scratch_days" {
  description = "Days after which objects under <prefix>/scratch are removed."
  type        = number
  default     = 7
}

variable "old_version_days" {
  description = "Days for which deleted and replaced objects can be restored."
  type        = number
  default     = 30
}

variable "oidc_provider_arn" {
  description = "ARN of the IAM OIDC provider of a Kubernetes cluster whose service accounts take the roles; empty: no cluster."
  type        = string
  default     = ""
  validation {
    condition     = can(regex("^$|^arn:[a-z-]+:iam::[0-9]{12}:oidc-provider/[^/]", var.oidc_provider_arn))
    error_message = "Want arn:aws:iam::<account>:oidc-provider/<issuer without https://>."
  }
}

variable "trainer_principals" {
  description = "ARNs that may take the role of the trainer, which reads and writes under the prefix."
  type        = list(string)
  default     = []
  validation {
    condition     = !contains(var.trainer_principals, "*")
    error_message = "Want ARNs, and not everybody."
  }
  validation {
    condition     = length(var.trainer_principals) + (var.oidc_provider_arn == "" ? 0 : length(var.trainer_subjects)) > 0
    error_message = "Want at least one ARN, or an OIDC provider and one of its subjects."
  }
}

variable "trainer_subjects" {
  description = "Service accounts of Kubernetes with the role of the trainer: system:serviceaccount:<namespace>:<name>."
  type        = list(string)
  default     = []
  validation {
    condition = alltrue([
      for subject in var.trainer_subjects : can(regex("^system:serviceaccount:[a-z0-9-]+:[a-z0-9.-]+$", subject))
    ])
    error_message = "Want system:serviceaccount:<namespace>:<name>, without wildcards."
  }
}

variable "server_principals" {
  description = "ARNs that may take the role of the server, which only reads models and artifacts."
  type        = list(string)
  default     = []
  validation {
    condition     = !contains(var.server_principals, "*")
    error_message = "Want ARNs, and not everybody."
  }
  validation {
    condition     = length(var.server_principals) + (var.oidc_provider_arn == "" ? 0 : length(var.server_subjects)) > 0
    error_message = "Want at least one ARN, or an OIDC provider and one of its subjects."
  }
}

variable "server_subjects" {
  description = "Service accounts of Kubernetes with the role of the server: system:serviceaccount:<namespace>:<name>."
  type        = list(string)
  default     = []
  validation {
    condition = alltrue([
      for subject in var.server_subjects : can(regex("^system:serviceaccount:[a-z0-9-]+:[a-z0-9.-]+$", subject))
    ])
    error_message = "Want system:serviceaccount:<namespace>:<name>, without wildcards."
  }
}
